//! Frames for the tests, built layer by layer.

/// UDP port that the tests configure as first of ours; the range has four.
pub(crate) const PORT: u16 = 4646;

/// A frame under construction. Every field can be made wrong.
#[derive(Clone)]
pub(crate) struct Frame {
    pub(crate) tags: Vec<(u16, u16)>,
    pub(crate) ip: Ip,
    pub(crate) udp: Udp,
}

#[derive(Clone)]
pub(crate) enum Ip {
    V4 {
        source: [u8; 4],
        destination: [u8; 4],
        options: Vec<u8>,
        fragment: u16,
        protocol: u8,
        version_ihl: Option<u8>,
        total_len: Option<u16>,
    },
    V6 {
        source: [u8; 16],
        destination: [u8; 16],
        extensions: Vec<(u8, Vec<u8>)>,
        last: u8,
        version: u8,
        payload_len: Option<u16>,
    },
}

#[derive(Clone)]
pub(crate) struct Udp {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) len: Option<u16>,
    pub(crate) payload: Vec<u8>,
}

pub(crate) const OUR_V4: [u8; 4] = [192, 0, 2, 1];
pub(crate) const OUR_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

pub(crate) fn v4() -> Frame {
    Frame {
        tags: vec![],
        ip: Ip::V4 {
            source: [203, 0, 113, 9],
            destination: OUR_V4,
            options: vec![],
            fragment: 0x4000,
            protocol: 17,
            version_ihl: None,
            total_len: None,
        },
        udp: Udp { source_port: 40000, destination_port: PORT, len: None, payload: vec![] },
    }
}

pub(crate) fn v6() -> Frame {
    let mut source = OUR_V6;
    source[15] = 99;
    Frame {
        ip: Ip::V6 { source, destination: OUR_V6, extensions: vec![], last: 17, version: 6, payload_len: None },
        ..v4()
    }
}

impl Frame {
    pub(crate) fn payload(mut self, payload: &[u8]) -> Self {
        self.udp.payload = payload.to_vec();
        self
    }

    pub(crate) fn tag(mut self, ethertype: u16, vlan: u16) -> Self {
        self.tags.push((ethertype, vlan));
        self
    }

    pub(crate) fn port(mut self, port: u16) -> Self {
        self.udp.destination_port = port;
        self
    }

    pub(crate) fn udp_len(mut self, len: u16) -> Self {
        self.udp.len = Some(len);
        self
    }

    pub(crate) fn v4_source(mut self, address: [u8; 4]) -> Self {
        if let Ip::V4 { source, .. } = &mut self.ip {
            *source = address;
        }
        self
    }

    pub(crate) fn v4_destination(mut self, address: [u8; 4]) -> Self {
        if let Ip::V4 { destination, .. } = &mut self.ip {
            *destination = address;
        }
        self
    }

    pub(crate) fn v6_source(mut self, address: [u8; 16]) -> Self {
        if let Ip::V6 { source, .. } = &mut self.ip {
            *source = address;
        }
        self
    }

    pub(crate) fn v6_destination(mut self, address: [u8; 16]) -> Self {
        if let Ip::V6 { destination, .. } = &mut self.ip {
            *destination = address;
        }
        self
    }

    pub(crate) fn options(mut self, words: usize) -> Self {
        if let Ip::V4 { options, .. } = &mut self.ip {
            *options = vec![1; words * 4];
        }
        self
    }

    pub(crate) fn fragment(mut self, bits: u16) -> Self {
        if let Ip::V4 { fragment, .. } = &mut self.ip {
            *fragment = bits;
        }
        self
    }

    pub(crate) fn protocol(mut self, number: u8) -> Self {
        match &mut self.ip {
            Ip::V4 { protocol, .. } => *protocol = number,
            Ip::V6 { last, .. } => *last = number,
        }
        self
    }

    pub(crate) fn version_ihl(mut self, byte: u8) -> Self {
        match &mut self.ip {
            Ip::V4 { version_ihl, .. } => *version_ihl = Some(byte),
            Ip::V6 { version, .. } => *version = byte,
        }
        self
    }

    pub(crate) fn ip_len(mut self, len: u16) -> Self {
        match &mut self.ip {
            Ip::V4 { total_len, .. } => *total_len = Some(len),
            Ip::V6 { payload_len, .. } => *payload_len = Some(len),
        }
        self
    }

    /// Appends an extension header of `units` times 8 bytes.
    pub(crate) fn extension(mut self, number: u8, units: usize) -> Self {
        if let Ip::V6 { extensions, .. } = &mut self.ip {
            let mut bytes = vec![0; units * 8];
            bytes[1] = (units - 1) as u8;
            extensions.push((number, bytes));
        }
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut udp = vec![];
        udp.extend(self.udp.source_port.to_be_bytes());
        udp.extend(self.udp.destination_port.to_be_bytes());
        udp.extend(self.udp.len.unwrap_or(self.udp.payload.len() as u16 + 8).to_be_bytes());
        udp.extend([0x12, 0x34]);
        udp.extend(&self.udp.payload);

        let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
        for (ethertype, vlan) in &self.tags {
            frame.extend(ethertype.to_be_bytes());
            frame.extend(vlan.to_be_bytes());
        }
        match &self.ip {
            Ip::V4 { source, destination, options, fragment, protocol, version_ihl, total_len } => {
                frame.extend(0x0800u16.to_be_bytes());
                let header_len = 20 + options.len();
                frame.push(version_ihl.unwrap_or(0x40 | (header_len / 4) as u8));
                frame.push(0);
                frame.extend(total_len.unwrap_or((header_len + udp.len()) as u16).to_be_bytes());
                frame.extend([0, 1]);
                frame.extend(fragment.to_be_bytes());
                frame.extend([64, *protocol, 0, 0]);
                frame.extend(source);
                frame.extend(destination);
                frame.extend(options);
            }
            Ip::V6 { source, destination, extensions, last, version, payload_len } => {
                frame.extend(0x86ddu16.to_be_bytes());
                let extensions_len: usize = extensions.iter().map(|(_, bytes)| bytes.len()).sum();
                frame.extend([version << 4, 0, 0, 0]);
                frame.extend(payload_len.unwrap_or((extensions_len + udp.len()) as u16).to_be_bytes());
                frame.extend([extensions.first().map_or(*last, |(number, _)| *number), 64]);
                frame.extend(source);
                frame.extend(destination);
                for (i, (_, bytes)) in extensions.iter().enumerate() {
                    let mut bytes = bytes.clone();
                    bytes[0] = extensions.get(i + 1).map_or(*last, |(number, _)| *number);
                    frame.extend(bytes);
                }
            }
        }
        frame.extend(udp);
        frame
    }
}

/// A data datagram of ours with this receiver index: header, 8 bytes of ciphertext and a tag.
pub(crate) fn data(index: u32) -> Vec<u8> {
    let mut bytes = vec![0x20, 1, 0, 0];
    bytes.extend(index.to_be_bytes());
    bytes.extend(1u64.to_be_bytes());
    bytes.extend([0x5a; 24]);
    bytes
}

/// A QUIC Initial (RFC 9000 §17.2.2) with this destination connection id.
pub(crate) fn initial(cid: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xc3, 0, 0, 0, 1, cid.len() as u8];
    bytes.extend(cid);
    bytes.extend([0x5a; 40]);
    bytes
}
