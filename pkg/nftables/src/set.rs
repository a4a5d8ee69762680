//! Named sets and maps: what their keys are, what belongs to a key, and the elements.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::{Family, IfName, IpRange, Ranges, Verdict};

/// What the keys of a set are made of. Keys of several parts are what `nft` calls concatenations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyType {
    /// `ipv4_addr` or `ipv6_addr`.
    Address(Family),
    /// Two addresses of one family.
    Pair(Family),
    /// Address, transport protocol and port.
    Service(Family),
    /// Link and address.
    Bound(Family),
    /// `ifname`.
    Link,
    /// A 32-bit number of our own choice; `nft` calls it a `mark`.
    Integer,
    /// Transport protocol and port.
    ProtoPort,
    /// `inet_proto`.
    Protocol,
    /// `inet_service`.
    Port,
    /// The type of an ICMPv6 message.
    Icmpv6Type,
}

/// A key of a set, all of it. Both addresses of a pair are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// An address.
    Address(IpAddr),
    /// Two addresses.
    Pair(IpAddr, IpAddr),
    /// Address, transport protocol (IANA's number) and port.
    Service(IpAddr, u8, u16),
    /// Link and address.
    Bound(IfName, IpAddr),
    /// A link.
    Link(IfName),
    /// A number.
    Integer(u32),
    /// Transport protocol (IANA's number) and port.
    ProtoPort(u8, u16),
    /// A transport protocol, IANA's number.
    Protocol(u8),
    /// A port.
    Port(u16),
    /// The type of an ICMPv6 message.
    Icmpv6Type(u8),
}

impl Key {
    /// The type of the sets it fits in.
    pub fn key_type(&self) -> KeyType {
        match self {
            Self::Address(ip) => KeyType::Address(Family::of(*ip)),
            Self::Pair(ip, _) => KeyType::Pair(Family::of(*ip)),
            Self::Service(ip, ..) => KeyType::Service(Family::of(*ip)),
            Self::Bound(_, ip) => KeyType::Bound(Family::of(*ip)),
            Self::Link(_) => KeyType::Link,
            Self::Integer(_) => KeyType::Integer,
            Self::ProtoPort(..) => KeyType::ProtoPort,
            Self::Protocol(_) => KeyType::Protocol,
            Self::Port(_) => KeyType::Port,
            Self::Icmpv6Type(_) => KeyType::Icmpv6Type,
        }
    }
}

/// What belongs to a key of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DataType {
    /// Nothing: it is a set.
    Nothing,
    /// A number: a data map.
    Integer,
    /// A verdict: a verdict map.
    Verdict,
}

/// What belongs to one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Data {
    /// Nothing.
    #[default]
    Nothing,
    /// A number.
    Integer(u32),
    /// What becomes of the packet.
    Verdict(Verdict),
}

impl Data {
    /// The type of the sets it fits in.
    pub fn data_type(&self) -> DataType {
        match self {
            Self::Nothing => DataType::Nothing,
            Self::Integer(_) => DataType::Integer,
            Self::Verdict(_) => DataType::Verdict,
        }
    }
}

/// After how many milliseconds the kernel takes an element out. Two are equal whatever their lengths, because
/// the kernel rounds them: elements differ only in whether they have one. Who wants another length takes the
/// element out and puts it in again.
#[derive(Clone, Copy, Debug)]
pub struct Timeout(
    /// Milliseconds, at least 1.
    pub u64,
);

impl PartialEq for Timeout {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Timeout {}

/// What a set has at a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// What belongs to the key.
    pub data: Data,
    /// How long it stays; only in sets with timeouts.
    pub timeout: Option<Timeout>,
}

impl From<Data> for Item {
    fn from(data: Data) -> Self {
        Self { data, timeout: None }
    }
}

/// The type of a set or map that we write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetType {
    key: KeyType,
    intervals: bool,
    data: DataType,
    timeouts: bool,
}

impl SetType {
    /// Intervals of addresses (`flags interval`).
    pub const fn intervals(family: Family) -> Self {
        let key = KeyType::Address(family);
        Self { key, intervals: true, data: DataType::Nothing, timeouts: false }
    }

    /// Single keys, found by hash.
    pub const fn exact(key: KeyType) -> Self {
        Self { key, intervals: false, data: DataType::Nothing, timeouts: false }
    }

    /// The same with something at each key.
    #[must_use]
    pub const fn to(self, data: DataType) -> Self {
        Self { data, ..self }
    }

    /// The same with elements that may have a timeout.
    #[must_use]
    pub const fn with_timeouts(self) -> Self {
        Self { timeouts: true, ..self }
    }

    /// What its keys are.
    pub fn key(&self) -> KeyType {
        self.key
    }

    /// Whether it has intervals of keys.
    pub fn has_intervals(&self) -> bool {
        self.intervals
    }

    /// What belongs to its keys.
    pub fn data(&self) -> DataType {
        self.data
    }

    /// Whether its elements may have a timeout.
    pub fn has_timeouts(&self) -> bool {
        self.timeouts
    }

    /// The family of the addresses that it has ranges of.
    pub(crate) fn range_family(&self) -> Option<Family> {
        match self.key {
            KeyType::Address(family) if self.intervals => Some(family),
            KeyType::Address(_)
            | KeyType::Pair(_)
            | KeyType::Service(_)
            | KeyType::Bound(_)
            | KeyType::Link
            | KeyType::Integer
            | KeyType::ProtoPort
            | KeyType::Protocol
            | KeyType::Port
            | KeyType::Icmpv6Type => None,
        }
    }
}

/// The kind of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKind {
    /// One of those that we write.
    Known(SetType),
    /// A set that we do not write. Its elements are not read, and no desired table has it.
    Unknown {
        /// The type as `nft` numbers it.
        key_type: u32,
        /// Bytes.
        key_len: u32,
        /// `NFT_SET_*`.
        flags: u32,
    },
}

/// Where in a set an element is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a set of intervals: all addresses of a range.
    Range(IpRange),
    /// In an exact set: one key.
    Key(Key),
}

impl Place {
    /// The range, if it is one.
    pub(crate) fn range(&self) -> Option<IpRange> {
        match self {
            Self::Range(range) => Some(*range),
            Self::Key(_) => None,
        }
    }
}

impl From<IpRange> for Place {
    fn from(range: IpRange) -> Self {
        Self::Range(range)
    }
}

impl From<Key> for Place {
    fn from(key: Key) -> Self {
        Self::Key(key)
    }
}

/// An element on its own, as changes have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// Its place.
    pub place: Place,
    /// What is there.
    pub item: Item,
}

impl Element {
    /// An element of a set, with no more to it than its place.
    pub fn new(place: impl Into<Place>) -> Self {
        Self { place: place.into(), item: Item::default() }
    }

    /// An element of a map.
    pub fn with(place: impl Into<Place>, data: Data) -> Self {
        Self { place: place.into(), item: data.into() }
    }
}

/// The elements of a set, in the form that its kind asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elements {
    /// Ranges with nothing at them: those that touch are one.
    Ranges(Ranges),
    /// Ranges with something at them or with timeouts. They do not overlap.
    Intervals(BTreeMap<IpRange, Item>),
    /// Single keys.
    Exact(BTreeMap<Key, Item>),
}

/// A named set or map. Its elements are of the form that [`Set::new`] chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// What its elements are.
    pub kind: SetKind,
    /// Its elements.
    pub elements: Elements,
}

impl Set {
    /// A set of this type without elements.
    pub fn new(set_type: SetType) -> Self {
        let elements = match set_type.range_family() {
            Some(_) if set_type.data == DataType::Nothing && !set_type.timeouts => {
                Elements::Ranges(Ranges::default())
            }
            Some(_) => Elements::Intervals(BTreeMap::new()),
            None => Elements::Exact(BTreeMap::new()),
        };
        Self { kind: SetKind::Known(set_type), elements }
    }

    /// A set of this kind without elements, as far as they are known.
    pub(crate) fn of_kind(kind: SetKind) -> Self {
        match kind {
            SetKind::Known(set_type) => Self::new(set_type),
            SetKind::Unknown { .. } => Self { kind, elements: Elements::Exact(BTreeMap::new()) },
        }
    }

    /// The set of the networks of one family among these; overlapping and adjacent ones become one range.
    pub fn of_nets<'a>(family: Family, nets: impl IntoIterator<Item = &'a ipnet::IpNet>) -> Self {
        Self {
            kind: SetKind::Known(SetType::intervals(family)),
            elements: Elements::Ranges(Ranges::from_nets(family, nets)),
        }
    }

    /// The set of these ranges; overlapping and adjacent ones become one.
    pub fn of_ranges(family: Family, ranges: Ranges) -> Self {
        Self { kind: SetKind::Known(SetType::intervals(family)), elements: Elements::Ranges(ranges) }
    }

    /// A set of this type with these elements; those that do not fit it are left out.
    pub fn of(set_type: SetType, elements: impl IntoIterator<Item = Element>) -> Self {
        let mut set = Self::new(set_type);
        let mut plain = Vec::new();
        for element in elements {
            match (&set.elements, set_type.range_family(), element.place) {
                // All at once: one by one, each would move those behind it.
                (Elements::Ranges(_), Some(_), Place::Range(range)) => plain.push(range),
                _ => set.insert(element),
            }
        }
        if let (Elements::Ranges(ranges), Some(family)) = (&mut set.elements, set_type.range_family()) {
            *ranges = Ranges::new(family, plain);
        }
        set
    }

    /// Puts an element in, in place of what its place has; nothing happens where it does not fit. The work is
    /// that of a search, save for plain ranges, where those behind it are moved.
    pub fn insert(&mut self, element: Element) {
        let SetKind::Known(set_type) = self.kind else { return };
        let Element { place, item } = element;
        if item.data.data_type() != set_type.data || item.timeout.is_some() && !set_type.timeouts {
            return;
        }
        match (&mut self.elements, place) {
            (Elements::Ranges(ranges), Place::Range(range))
                if Some(range.family()) == set_type.range_family() =>
            {
                ranges.add(range);
            }
            (Elements::Intervals(items), Place::Range(range))
                if Some(range.family()) == set_type.range_family() =>
            {
                items.insert(range, item);
            }
            (Elements::Exact(items), Place::Key(key)) if key.key_type() == set_type.key => {
                items.insert(key, item);
            }
            (Elements::Ranges(_) | Elements::Intervals(_) | Elements::Exact(_), _) => {}
        }
    }

    /// Takes the element at this very place out.
    pub fn remove(&mut self, place: &Place) {
        match (&mut self.elements, place) {
            (Elements::Ranges(ranges), Place::Range(range)) => ranges.remove(range),
            (Elements::Intervals(items), Place::Range(range)) => {
                items.remove(range);
            }
            (Elements::Exact(items), Place::Key(key)) => {
                items.remove(key);
            }
            (Elements::Ranges(_) | Elements::Intervals(_) | Elements::Exact(_), _) => {}
        }
    }

    /// The elements in order.
    pub fn iter(&self) -> Box<dyn Iterator<Item = Element> + '_> {
        let item = |place: Place, item: &Item| Element { place, item: item.clone() };
        match &self.elements {
            Elements::Ranges(ranges) => Box::new(ranges.iter().map(|range| Element::new(*range))),
            Elements::Intervals(items) => {
                Box::new(items.iter().map(move |(range, i)| item((*range).into(), i)))
            }
            Elements::Exact(items) => Box::new(items.iter().map(move |(key, i)| item((*key).into(), i))),
        }
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        match &self.elements {
            Elements::Ranges(ranges) => ranges.len(),
            Elements::Intervals(items) => items.len(),
            Elements::Exact(items) => items.len(),
        }
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its ranges, if it has plain ones.
    pub fn ranges(&self) -> Option<&Ranges> {
        match &self.elements {
            Elements::Ranges(ranges) => Some(ranges),
            Elements::Intervals(_) | Elements::Exact(_) => None,
        }
    }

    /// Its ranges, if it has plain ones.
    pub fn ranges_mut(&mut self) -> Option<&mut Ranges> {
        match &mut self.elements {
            Elements::Ranges(ranges) => Some(ranges),
            Elements::Intervals(_) | Elements::Exact(_) => None,
        }
    }

    /// Whether its elements have verdicts, which may name chains.
    pub(crate) fn has_verdicts(&self) -> bool {
        matches!(self.kind, SetKind::Known(SetType { data: DataType::Verdict, .. }))
    }

    /// The places of elements that the other set does not have, or not the same, and the elements that this
    /// one would be given for them.
    pub(crate) fn to(&self, other: &Self) -> (Vec<Place>, Vec<Element>) {
        fn between<'a, P: Copy + Ord + Into<Place> + 'a>(
            old: &'a BTreeMap<P, Item>,
            new: &'a BTreeMap<P, Item>,
        ) -> (Vec<Place>, Vec<Element>) {
            let (mut gone, mut come) = (Vec::new(), Vec::new());
            let element = |(place, item): (&P, &Item)| Element { place: (*place).into(), item: item.clone() };
            let mut ahead = new.iter().peekable();
            for (place, item) in old {
                while let Some(next) = ahead.next_if(|(p, _)| *p < place) {
                    come.push(element(next));
                }
                match ahead.next_if(|(p, _)| *p == place) {
                    Some((_, same)) if same == item => {}
                    other => {
                        gone.push((*place).into());
                        come.extend(other.map(element));
                    }
                }
            }
            come.extend(ahead.map(element));
            (gone, come)
        }
        match (&self.elements, &other.elements) {
            (Elements::Ranges(old), Elements::Ranges(new)) => {
                let gone = old.missing_from(new).into_iter().map(Place::Range).collect();
                (gone, new.missing_from(old).into_iter().map(Element::new).collect())
            }
            (Elements::Intervals(old), Elements::Intervals(new)) => between(old, new),
            (Elements::Exact(old), Elements::Exact(new)) => between(old, new),
            // Elements of another form are those of another kind of set, which is written anew as a whole.
            (Elements::Ranges(_) | Elements::Intervals(_) | Elements::Exact(_), _) => {
                (self.iter().map(|e| e.place).collect(), other.iter().collect())
            }
        }
    }
}
