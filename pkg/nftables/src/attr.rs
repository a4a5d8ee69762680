//! Netlink messages and attributes as bytes: lengths in host order, nftables' own numbers in network order.

/// Set on the type of an attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that number it.
const TYPE_MASK: u16 = 0x3fff;
/// Bytes of the netlink header and of the netfilter header behind it.
pub(crate) const HEADERS: usize = 20;

/// Messages or attributes one after the other, of nftables and of netlink in general.
#[derive(Debug, Default)]
pub struct Writer(
    /// What was written so far.
    pub Vec<u8>,
);

/// The headers of a message.
pub(crate) struct Header {
    /// Subsystem and message.
    pub message: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// Sequence number.
    pub seq: u32,
    /// `NFPROTO_*`.
    pub family: u8,
    /// The subsystem, for the ends of a batch.
    pub resource: u16,
}

impl Writer {
    /// Writes a message whose attributes `content` writes.
    pub(crate) fn message(&mut self, header: &Header, content: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend(0u32.to_ne_bytes());
        self.0.extend(header.message.to_ne_bytes());
        self.0.extend(header.flags.to_ne_bytes());
        self.0.extend(header.seq.to_ne_bytes());
        self.0.extend(0u32.to_ne_bytes());
        self.0.extend([header.family, 0]);
        self.0.extend(header.resource.to_be_bytes());
        content(self);
        let len = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
        self.0[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Writes an attribute of bytes.
    pub fn bytes(&mut self, number: u16, data: &[u8]) {
        self.attribute(number, |w| w.0.extend(data));
    }

    /// Writes an attribute that holds what `content` writes.
    pub fn nest(&mut self, number: u16, content: impl FnOnce(&mut Self)) {
        self.attribute(number | NESTED, content);
    }

    /// Writes a number in network order.
    pub fn number(&mut self, number: u16, value: u32) {
        self.bytes(number, &value.to_be_bytes());
    }

    /// Writes a number of eight bytes in network order.
    pub fn long(&mut self, number: u16, value: u64) {
        self.bytes(number, &value.to_be_bytes());
    }

    /// Writes a text with the zero at its end.
    pub fn text(&mut self, number: u16, text: &str) {
        self.attribute(number, |w| {
            w.0.extend(text.as_bytes());
            w.0.push(0);
        });
    }

    fn attribute(&mut self, number: u16, content: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend(0u16.to_ne_bytes());
        self.0.extend(number.to_ne_bytes());
        content(self);
        // The kernel refuses an attribute whose length was cut; nothing here comes near 64 KiB.
        let len = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        while !self.0.len().is_multiple_of(4) {
            self.0.push(0);
        }
    }
}

/// Attributes one after the other: their numbers, without the flags, and what they hold. The first malformed
/// one ends them.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(
    /// What is still to be read.
    pub &'a [u8],
);

impl<'a> Attributes<'a> {
    /// The attribute of this number.
    pub fn get(self, number: u16) -> Option<&'a [u8]> {
        self.into_iter().find(|(n, _)| *n == number).map(|(_, data)| data)
    }

    /// The attributes in the attribute of this number.
    pub fn nest(self, number: u16) -> Option<Attributes<'a>> {
        self.get(number).map(Attributes)
    }

    /// The number in network order in the attribute of this number.
    pub fn number(self, number: u16) -> Option<u32> {
        self.get(number)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// The number of eight bytes in network order in the attribute of this number.
    pub fn long(self, number: u16) -> Option<u64> {
        self.get(number)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// The text in the attribute of this number, up to its zero.
    pub fn text(self, number: u16) -> Option<&'a str> {
        let data = self.get(number)?;
        std::str::from_utf8(data.split(|b| *b == 0).next()?).ok()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    /// The next attribute; none after one whose length is wrong.
    fn next(&mut self) -> Option<Self::Item> {
        let (head, rest) = self.0.split_at_checked(4)?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]])).checked_sub(4)?;
        let data = rest.get(..len)?;
        self.0 = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([head[2], head[3]]) & TYPE_MASK, data))
    }
}

/// A message of a datagram.
pub(crate) struct Message<'a> {
    /// Subsystem and message.
    pub message: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// `NFPROTO_*`.
    pub family: u8,
    /// What follows the two headers.
    pub attributes: Attributes<'a>,
}

/// Takes the messages of a datagram apart; a broken one is the last. Those too short for a netfilter header,
/// which are netlink's own, are left out.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?);
        let len = usize::try_from(len).ok().filter(|&len| len >= 16)?;
        let message = datagram.get(..len)?;
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
    .filter_map(|message| {
        let (headers, attributes) = message.split_at_checked(HEADERS)?;
        Some(Message {
            message: u16::from_ne_bytes([headers[4], headers[5]]),
            flags: u16::from_ne_bytes([headers[6], headers[7]]),
            family: headers[16],
            attributes: Attributes(attributes),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_cut_where_they_are_malformed() {
        let good = [6, 0, 3, 0x80, 0xaa, 0xbb, 0, 0, 5, 0, 4, 0, 0xcc];
        let list: Vec<(u16, &[u8])> = Attributes(&good).collect();
        assert_eq!(list, [(3, &[0xaa, 0xbb][..]), (4, &[0xcc])]);
        assert_eq!(Attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(Attributes(&[9, 0, 1, 0, 0]).count(), 0);
    }
}
