//! Bounded reads of network bytes.
//!
//! A parser written against [`Bytes`] runs on a slice in user space and on a `(start, end)` pair in eBPF, where the verifier has to see
//! each comparison with the end of the packet. Both answer `None` past the end; nothing here can panic.
#![allow(unsafe_code, reason = "the raw span that eBPF hands us has no length, only an end")]

/// Bytes that a parser may look at, wherever they live.
///
/// Integers are big-endian, as on the wire. Each call returns `None` when the read would cross the end.
pub trait Bytes {
    /// The byte at `offset`.
    fn u8(&self, offset: usize) -> Option<u8>;
    /// The two bytes at `offset`.
    fn u16(&self, offset: usize) -> Option<u16>;
    /// The four bytes at `offset`.
    fn u32(&self, offset: usize) -> Option<u32>;
    /// The eight bytes at `offset`.
    fn u64(&self, offset: usize) -> Option<u64>;
    /// The `N` bytes at `offset`.
    fn array<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
}

/// Bytes that lie in one piece, so that many fields can be read behind one look at the bounds.
pub trait Contiguous: Bytes {
    /// The first `N` bytes.
    fn head<const N: usize>(&self) -> Option<&[u8; N]>;
}

impl Bytes for [u8] {
    #[inline]
    fn u8(&self, offset: usize) -> Option<u8> {
        self.get(offset).copied()
    }

    #[inline]
    fn u16(&self, offset: usize) -> Option<u16> {
        self.array(offset).map(u16::from_be_bytes)
    }

    #[inline]
    fn u32(&self, offset: usize) -> Option<u32> {
        self.array(offset).map(u32::from_be_bytes)
    }

    #[inline]
    fn u64(&self, offset: usize) -> Option<u64> {
        self.array(offset).map(u64::from_be_bytes)
    }

    #[inline]
    fn array<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

impl Contiguous for [u8] {
    #[inline]
    fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        self.first_chunk()
    }
}

/// The furthest offset that [`Span`] reads from.
///
/// The verifier gives up on packet pointers moved by more than 0xffff; every header that Weir looks at begins far before this.
pub const OFFSET_MAX: usize = 1023;

/// A raw region of memory: what XDP and tc hand a program as `data` and `data_end`.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    start: usize,
    end: usize,
}

impl Span {
    /// Wraps the region `start..end`.
    ///
    /// # Safety
    /// All of `start..end` must stay readable for as long as the span is used. In eBPF the verifier proves it again.
    #[inline(always)]
    pub const unsafe fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// Bytes in the region.
    #[inline(always)]
    pub const fn len(&self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Whether the region is empty.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.end <= self.start
    }

    #[inline(always)]
    fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        if offset > OFFSET_MAX {
            return None;
        }
        let at = self.start + offset;
        if at + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: `at..at + size_of::<T>()` lies inside the region by the comparison above, the region is readable by the contract of
        // `new`, and `T` is one of the plain integers and byte arrays below, for which any bytes are a value.
        Some(unsafe { core::ptr::read_unaligned(at as *const T) })
    }
}

impl Bytes for Span {
    #[inline(always)]
    fn u8(&self, offset: usize) -> Option<u8> {
        self.read(offset)
    }

    #[inline(always)]
    fn u16(&self, offset: usize) -> Option<u16> {
        self.read(offset).map(u16::from_be)
    }

    #[inline(always)]
    fn u32(&self, offset: usize) -> Option<u32> {
        self.read(offset).map(u32::from_be)
    }

    #[inline(always)]
    fn u64(&self, offset: usize) -> Option<u64> {
        self.read(offset).map(u64::from_be)
    }

    #[inline(always)]
    fn array<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.read(offset)
    }
}

impl Contiguous for Span {
    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        if self.start + N > self.end {
            return None;
        }
        // SAFETY: the first `N` bytes lie inside the region by the comparison above, the region is readable by the contract of `new` for as
        // long as the span is used, and a byte array has no alignment.
        Some(unsafe { &*(self.start as *const [u8; N]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A span over a slice, so that both readers see the same bytes.
    fn span(bytes: &[u8]) -> Span {
        let start = bytes.as_ptr() as usize;
        // SAFETY: the slice outlives the span in these tests.
        unsafe { Span::new(start, start + bytes.len()) }
    }

    #[test]
    fn both_readers_agree_at_every_offset_and_past_the_end() {
        let bytes: [u8; 24] = core::array::from_fn(|i| (i * 37) as u8);
        for len in 0..=bytes.len() {
            let slice = &bytes[..len];
            let span = span(slice);
            assert_eq!(span.len(), len);
            assert_eq!((slice.head::<8>(), slice.head::<0>()), (span.head::<8>(), span.head::<0>()));
            assert_eq!(slice.head::<8>().is_some(), len >= 8);
            for offset in 0..=len + 2 {
                assert_eq!(slice.u8(offset), span.u8(offset));
                assert_eq!(slice.u16(offset), span.u16(offset));
                assert_eq!(slice.u32(offset), span.u32(offset));
                assert_eq!(slice.u64(offset), span.u64(offset));
                assert_eq!(slice.array::<8>(offset), span.array::<8>(offset));
                assert_eq!(slice.u32(offset).is_some(), offset + 4 <= len);
            }
        }
    }

    #[test]
    fn a_span_refuses_offsets_that_the_verifier_would_not_follow() {
        let bytes = [0u8; OFFSET_MAX + 16];
        assert_eq!(span(&bytes).u8(OFFSET_MAX), Some(0));
        assert_eq!(span(&bytes).u8(OFFSET_MAX + 1), None);
    }
}
