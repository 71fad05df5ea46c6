//! The bench's eBPF object: embedded, loaded, and its pass program.

use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, Pod, include_bytes_aligned};

use crate::layout::name;
use crate::rig::Namespace;
use crate::{Error, Result};

/// The object as `cargo xtask ebpf` builds it.
static OBJECT: &[u8] = include_bytes_aligned!("../bpf/weir-bench.bpf.o");

/// Loads the object: its maps exist afterwards, its programs when they are asked for.
pub(crate) fn load() -> Result<Ebpf> {
    Ebpf::load(OBJECT).map_err(Error::bpf("cannot load the bench's eBPF object"))
}

/// A program of the object, by its type.
pub(crate) fn program<'a, P>(bpf: &'a mut Ebpf, program: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let what = || format!("the bench's eBPF object has no usable program {program}");
    let found = bpf.program_mut(program).ok_or_else(|| Error::Io { what: what(), source: not_found() })?;
    found.try_into().map_err(Error::bpf(what()))
}

/// An array map of the object.
pub(crate) fn array<V: Pod>(bpf: &mut Ebpf, map: &str) -> Result<Array<MapData, V>> {
    take(bpf, map)?.try_into().map_err(Error::bpf(format!("map {map}")))
}

/// A per-CPU array map of the object.
pub(crate) fn per_cpu_array<V: Pod>(bpf: &mut Ebpf, map: &str) -> Result<PerCpuArray<MapData, V>> {
    take(bpf, map)?.try_into().map_err(Error::bpf(format!("map {map}")))
}

fn take(bpf: &mut Ebpf, map: &str) -> Result<aya::maps::Map> {
    bpf.take_map(map)
        .ok_or_else(|| Error::Io { what: format!("the bench's eBPF object has no map {map}"), source: not_found() })
}

fn not_found() -> std::io::Error {
    std::io::ErrorKind::NotFound.into()
}

/// An XDP program that passes everything, attached natively until dropped.
///
/// A veth receives redirected or transmitted XDP frames only when it has an XDP program or GRO.
pub struct Pass {
    _bpf: Ebpf,
}

impl Pass {
    /// Attaches it to an interface.
    ///
    /// # Errors
    /// [`Error::NoInterface`], or [`Error::Bpf`] when another program is attached or the driver has no native XDP.
    pub fn attach(namespace: &Namespace, interface: &str) -> Result<Self> {
        let ifindex = namespace.interface_index(interface)?;
        let mut bpf = load()?;
        let xdp: &mut Xdp = program(&mut bpf, name::PASS)?;
        xdp.load().map_err(Error::bpf("the kernel refused the pass program"))?;
        namespace
            .enter(|| xdp.attach_to_if_index(ifindex, XdpMode::Driver))?
            .map_err(Error::bpf(format!("cannot attach the pass program to {interface}")))?;
        Ok(Self { _bpf: bpf })
    }
}
