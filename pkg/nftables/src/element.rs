//! Keys and elements as bytes: the parts of a key one behind the other, each filled up to four bytes.

use std::net::IpAddr;

use crate::attr::{Attributes, Writer};
use crate::expr;
use crate::kernel::{data, element, set};
use crate::{Data, DataType, Element, Family, IfName, Item, Key, KeyType, Place, SetType, Timeout};

/// A part of a key.
#[derive(Clone, Copy)]
enum Part {
    Address(Family),
    Link,
    Protocol,
    Port,
    Mark,
    Icmpv6Type,
}

impl Part {
    fn width(self) -> usize {
        match self {
            Self::Address(family) => family.width().into(),
            Self::Link => 16,
            Self::Protocol | Self::Icmpv6Type => 1,
            Self::Port => 2,
            Self::Mark => 4,
        }
    }

    /// `nft`'s number for its type.
    fn number(self) -> u32 {
        match self {
            Self::Address(Family::V4) => set::IPV4_ADDR,
            Self::Address(Family::V6) => set::IPV6_ADDR,
            Self::Link => set::IFNAME,
            Self::Protocol => set::INET_PROTO,
            Self::Port => set::INET_SERVICE,
            Self::Mark => set::MARK,
            Self::Icmpv6Type => set::ICMPV6_TYPE,
        }
    }
}

impl KeyType {
    const ALL: [Self; 14] = [
        Self::Address(Family::V4),
        Self::Address(Family::V6),
        Self::Pair(Family::V4),
        Self::Pair(Family::V6),
        Self::Service(Family::V4),
        Self::Service(Family::V6),
        Self::Bound(Family::V4),
        Self::Bound(Family::V6),
        Self::Link,
        Self::Integer,
        Self::ProtoPort,
        Self::Protocol,
        Self::Port,
        Self::Icmpv6Type,
    ];

    fn parts(self) -> &'static [Part] {
        use Family::{V4, V6};
        match self {
            Self::Address(V4) => &[Part::Address(V4)],
            Self::Address(V6) => &[Part::Address(V6)],
            Self::Pair(V4) => &[Part::Address(V4), Part::Address(V4)],
            Self::Pair(V6) => &[Part::Address(V6), Part::Address(V6)],
            Self::Service(V4) => &[Part::Address(V4), Part::Protocol, Part::Port],
            Self::Service(V6) => &[Part::Address(V6), Part::Protocol, Part::Port],
            Self::Bound(V4) => &[Part::Link, Part::Address(V4)],
            Self::Bound(V6) => &[Part::Link, Part::Address(V6)],
            Self::Link => &[Part::Link],
            Self::Integer => &[Part::Mark],
            Self::ProtoPort => &[Part::Protocol, Part::Port],
            Self::Protocol => &[Part::Protocol],
            Self::Port => &[Part::Port],
            Self::Icmpv6Type => &[Part::Icmpv6Type],
        }
    }

    /// Whether a key of it has as many bytes.
    pub(crate) fn fits(self, bytes: &[u8]) -> bool {
        bytes.len() == self.width()
    }

    /// `nft`'s number for the type.
    fn number(self) -> u32 {
        self.parts().iter().fold(0, |number, part| number << set::TYPE_BITS | part.number())
    }

    /// Bytes of a key.
    fn width(self) -> usize {
        match self.parts() {
            [part] => part.width(),
            parts => parts.iter().map(|part| part.width().next_multiple_of(4)).sum(),
        }
    }

    /// How `nft` is told to read a key: in the order of the host, in that of the network, or part by part.
    fn byte_order(self) -> u32 {
        match self {
            Self::Link | Self::Integer => set::HOST_ENDIAN,
            Self::Address(_) | Self::Protocol | Self::Port | Self::Icmpv6Type => set::BIG_ENDIAN,
            Self::Pair(_) | Self::Service(_) | Self::Bound(_) | Self::ProtoPort => 0,
        }
    }

    /// The key that these bytes are.
    pub(crate) fn read(self, bytes: &[u8]) -> Option<Key> {
        if !self.fits(bytes) {
            return None;
        }
        let mut rest = bytes;
        let mut next = |width: usize| {
            let part = rest.get(..width);
            rest = rest.get(width.next_multiple_of(4)..).unwrap_or_default();
            part
        };
        let address = |bytes: &[u8]| match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        };
        let port = |bytes: &[u8]| bytes.try_into().ok().map(u16::from_be_bytes);
        let byte = |bytes: &[u8]| bytes.first().copied();
        Some(match self {
            Self::Address(f) => Key::Address(address(next(f.width().into())?)?),
            Self::Pair(f) => Key::Pair(address(next(f.width().into())?)?, address(next(f.width().into())?)?),
            Self::Service(f) => {
                Key::Service(address(next(f.width().into())?)?, byte(next(1)?)?, port(next(2)?)?)
            }
            Self::Bound(f) => Key::Bound(IfName::from_padded(next(16)?)?, address(next(f.width().into())?)?),
            Self::Link => Key::Link(IfName::from_padded(next(16)?)?),
            Self::Integer => Key::Integer(next(4)?.try_into().ok().map(u32::from_ne_bytes)?),
            Self::ProtoPort => Key::ProtoPort(byte(next(1)?)?, port(next(2)?)?),
            Self::Protocol => Key::Protocol(byte(next(1)?)?),
            Self::Port => Key::Port(port(next(2)?)?),
            Self::Icmpv6Type => Key::Icmpv6Type(byte(next(1)?)?),
        })
    }
}

impl Key {
    /// The key as the kernel has it.
    fn bytes(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(32);
        // Only a key of several parts is filled up.
        let several = self.key_type().parts().len() > 1;
        let mut add = |part: &[u8]| {
            all.extend(part);
            if several {
                all.resize(all.len().next_multiple_of(4), 0);
            }
        };
        let address = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        match self {
            Self::Address(ip) => add(&address(ip)),
            Self::Pair(one, other) => {
                add(&address(one));
                add(&address(other));
            }
            Self::Service(ip, protocol, port) => {
                add(&address(ip));
                add(&[*protocol]);
                add(&port.to_be_bytes());
            }
            Self::Bound(link, ip) => {
                add(link.padded());
                add(&address(ip));
            }
            Self::Link(link) => add(link.padded()),
            Self::Integer(number) => add(&number.to_ne_bytes()),
            Self::ProtoPort(protocol, port) => {
                add(&[*protocol]);
                add(&port.to_be_bytes());
            }
            Self::Protocol(number) | Self::Icmpv6Type(number) => add(&[*number]),
            Self::Port(port) => add(&port.to_be_bytes()),
        }
        all
    }
}

impl SetType {
    /// `NFT_SET_*`.
    fn flags(&self) -> u32 {
        let flag = |is: bool, flag: u32| if is { flag } else { 0 };
        flag(self.has_intervals(), set::INTERVAL)
            | flag(self.data() != DataType::Nothing, set::MAP)
            | flag(self.has_timeouts(), set::TIMEOUT)
    }

    /// The type of data as `nft` numbers it, and its bytes.
    fn data_numbers(&self) -> Option<(u32, u32)> {
        match self.data() {
            DataType::Nothing => None,
            DataType::Integer => Some((set::MARK << set::TYPE_BITS | set::MARK, 8)),
            DataType::Verdict => Some((set::VERDICT, 16)),
        }
    }

    /// Writes what makes a set one of this type.
    pub(crate) fn write(&self, w: &mut Writer, id: u32) {
        let key = self.key();
        w.number(set::FLAGS, self.flags());
        w.number(set::KEY_TYPE, key.number());
        w.number(set::KEY_LEN, key.width() as u32);
        if let Some((number, len)) = self.data_numbers() {
            w.number(set::DATA_TYPE, number);
            w.number(set::DATA_LEN, len);
        }
        // The kernel asks for an identifier, unique in the batch, by which other messages may name the set.
        w.number(set::ID, id);
        let mut orders = Vec::new();
        let mut order = |number: u8, order: u32| {
            orders.extend([number, 4]);
            orders.extend(order.to_ne_bytes());
        };
        order(set::KEY_BYTE_ORDER, key.byte_order());
        if self.data() == DataType::Integer {
            order(set::DATA_BYTE_ORDER, set::HOST_ENDIAN);
        }
        w.bytes(set::USER_DATA, &orders);
    }

    /// The type of a set that the kernel tells of, if it is one of ours.
    pub(crate) fn read(attributes: Attributes<'_>) -> Option<Self> {
        let flags = attributes.number(set::FLAGS).unwrap_or(0);
        let (number, len) = (attributes.number(set::KEY_TYPE)?, attributes.number(set::KEY_LEN)?);
        let key = KeyType::ALL.into_iter().find(|key| (key.number(), key.width() as u32) == (number, len))?;
        let ranges = flags & set::INTERVAL != 0;
        let base = if let KeyType::Address(family) = key
            && ranges
        {
            Self::intervals(family)
        } else {
            Self::exact(key)
        };
        let base = if flags & set::TIMEOUT != 0 { base.with_timeouts() } else { base };
        let data = (attributes.number(set::DATA_TYPE), attributes.number(set::DATA_LEN));
        [DataType::Nothing, DataType::Integer, DataType::Verdict].into_iter().map(|data| base.to(data)).find(
            |t| t.flags() == flags && (t.data() == DataType::Nothing || data == split(t.data_numbers())),
        )
    }
}

fn split(pair: Option<(u32, u32)>) -> (Option<u32>, Option<u32>) {
    pair.map_or((None, None), |(a, b)| (Some(a), Some(b)))
}

/// Writes an element with what belongs to it. A range is two: its first address, and an end mark at the address
/// behind its last, if there is one.
pub(crate) fn write(w: &mut Writer, Element { place, item }: &Element) {
    write_place(w, place, |w| {
        match &item.data {
            Data::Nothing => {}
            Data::Integer(number) => {
                // In the second word: see how a dispatch is written.
                let bytes = [[0; 4], number.to_ne_bytes()].concat();
                w.nest(element::DATA, |w| w.bytes(data::VALUE, &bytes));
            }
            Data::Verdict(verdict) => w.nest(element::DATA, |w| expr::write_verdict(w, verdict)),
        }
        if let Some(Timeout(milliseconds)) = item.timeout {
            w.long(element::TIMEOUT, milliseconds.max(1));
        }
    });
}

/// Writes an element to be taken out.
pub(crate) fn write_gone(w: &mut Writer, place: &Place) {
    write_place(w, place, |_| {});
}

fn write_place(w: &mut Writer, place: &Place, item: impl FnOnce(&mut Writer)) {
    let key = |w: &mut Writer, key: Key| w.nest(element::KEY, |w| w.bytes(data::VALUE, &key.bytes()));
    let (first, end) = match place {
        Place::Range(range) => (Key::Address(range.first()), range.after()),
        Place::Key(key) => (*key, None),
    };
    w.nest(element::LIST_ITEM, |w| {
        key(w, first);
        item(w);
    });
    if let Some(after) = end {
        w.nest(element::LIST_ITEM, |w| {
            w.number(element::FLAGS, element::INTERVAL_END);
            key(w, Key::Address(after));
        });
    }
}

/// Bytes of an element at most.
pub(crate) fn size(place: &Place, item: Option<&Item>) -> usize {
    const HEAD: usize = 4;
    let key = match place {
        Place::Range(range) => 2 * usize::from(range.family().width()) + 3 * HEAD + 8,
        Place::Key(key) => key.key_type().width().next_multiple_of(4),
    };
    let data = match item.map(|item| &item.data) {
        None | Some(Data::Nothing) => 0,
        Some(Data::Integer(_)) => 16,
        Some(Data::Verdict(verdict)) => 24 + verdict.chain().map_or(0, |chain| chain.len() + 4),
    };
    let timeout = if item.is_some_and(|item| item.timeout.is_some()) { 12 } else { 0 };
    3 * HEAD + key + data + timeout
}

/// What an element that the kernel tells of has; `None` if it is not of the kind that its set is of.
pub(crate) fn read_item(of: DataType, attributes: Attributes<'_>) -> Option<Item> {
    let data = attributes.nest(element::DATA);
    let data = match of {
        DataType::Nothing => Data::Nothing,
        DataType::Integer => {
            let bytes: [u8; 8] = data?.get(data::VALUE)?.try_into().ok()?;
            let [0, 0, 0, 0, number @ ..] = bytes else { return None };
            Data::Integer(u32::from_ne_bytes(number))
        }
        DataType::Verdict => Data::Verdict(expr::read_verdict(data?)?),
    };
    Some(Item { data, timeout: attributes.long(element::TIMEOUT).map(Timeout) })
}
