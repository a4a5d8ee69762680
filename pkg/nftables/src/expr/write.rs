//! Our expressions as those of the kernel, in the very form that it lists them in: load the family, compare
//! it, load an address, mask it, compare it or look it up.

use ipnet::IpNet;

use crate::attr::Writer;
use crate::kernel::{
    REGISTER, VERDICT_REGISTER, bitwise, cmp, ct, data, fib, immediate, limit, log, lookup, meta, object,
    objref, payload, range, register, reject, rule, verdict,
};
use crate::range::number;
use crate::{Addresses, CtDirection, Direction, End, Expr, Family, Header, Load, Mark, TableFamily, Verdict};

impl Family {
    /// `NFPROTO_*`.
    pub(super) fn protocol(self) -> u8 {
        match self {
            Self::V4 => meta::IPV4,
            Self::V6 => meta::IPV6,
        }
    }

    /// The EtherType.
    pub(super) fn ether_type(self) -> u16 {
        match self {
            Self::V4 => 0x0800,
            Self::V6 => 0x86dd,
        }
    }

    /// The last bytes of a number, as many as an address has.
    pub(super) fn octets(self, number: u128) -> Vec<u8> {
        number.to_be_bytes()[16 - usize::from(self.width())..].to_vec()
    }

    /// The mask of a prefix.
    pub(super) fn mask(self, prefix: u8) -> u128 {
        let host_bits = u32::from((self.width() * 8).saturating_sub(prefix));
        self.highest() & u128::MAX.checked_shl(host_bits).unwrap_or(0)
    }
}

impl Mark {
    /// What is loaded of it.
    pub(super) fn load(self) -> Load {
        match self {
            Self::Packet => Load::Mark,
            Self::Connection => Load::CtMark,
        }
    }
}

/// Bits as they are in a register: marks and states in the order of the host.
pub(crate) fn bits(of: Load, value: u32) -> Vec<u8> {
    if of.width() == 1 { vec![value.to_le_bytes()[0]] } else { value.to_ne_bytes().to_vec() }
}

/// A number as it is in a register.
fn number_bytes(of: Load, value: u16) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    if of.width() == 1 { vec![bytes[1]] } else { bytes.to_vec() }
}

/// Writes the items of a rule's list. A packet's family is compared once before its addresses, as `nft` does.
pub(crate) fn write(w: &mut Writer, table: TableFamily, exprs: &[Expr]) {
    let mut fixed = None;
    for expr in exprs {
        if let Some(family) = expr.family().filter(|family| fixed != Some(*family)) {
            write_family(w, table, family);
        }
        fixed = expr.fixes().or(fixed);
        write_one(w, table, expr);
    }
}

fn write_one(w: &mut Writer, table: TableFamily, expr: &Expr) {
    match expr {
        Expr::NfProto(family) => write_family(w, table, *family),
        Expr::L4Proto(protocol) => compare(w, Load::L4Proto, &[*protocol], false),
        Expr::EtherType(number) => {
            load_meta(w, meta::PROTOCOL, REGISTER);
            write_cmp(w, equality(false), &number.to_be_bytes());
        }
        Expr::Link { direction, name, negated } => {
            compare(w, Load::Link(*direction), name.padded(), *negated);
        }
        Expr::Address { end, among: Addresses::Set(family, set), negated } => {
            load(w, Load::Address(*family, *end), 0);
            write_lookup(w, set, *negated, None);
        }
        Expr::Address { end, among: Addresses::Net(net), negated } => {
            let (family, prefix) = (Family::of(net.addr()), net.prefix_len());
            // Of a prefix of whole bytes only those are loaded, as `nft` does.
            if prefix != 0 && prefix.is_multiple_of(8) {
                load_payload(w, Header::Network, family.offset(*end), prefix / 8, REGISTER);
                let value = family.octets(number(net.network()));
                write_cmp(w, equality(*negated), &value[..usize::from(prefix / 8)]);
            } else {
                write_net(w, Load::Address(family, *end), *net, *negated);
            }
        }
        Expr::Net { of, net, negated } => write_net(w, *of, *net, *negated),
        Expr::EtherSource { address, negated } => compare(w, Load::EtherSource, address, *negated),
        Expr::Number { of, first, last, negated } => {
            write_number(w, *of, (*first, *last), *negated);
        }
        Expr::Bits { of, mask, value, negated } => {
            load(w, *of, 0);
            if bits(*of, *mask) != bits(*of, u32::MAX) {
                write_bitwise(w, &bits(*of, *mask), &bits(*of, 0));
            }
            write_cmp(w, equality(*negated), &bits(*of, *value));
        }
        Expr::NoReturnPath => {
            item(w, "fib", |w| {
                w.number(fib::FLAGS, fib::SOURCE | fib::IIF | fib::PRESENT);
                w.number(fib::RESULT, fib::OIF);
                w.number(fib::DREG, REGISTER);
            });
            write_cmp(w, equality(false), &[0; 4]);
        }
        Expr::Lookup { keys, set, negated } => {
            load_all(w, keys);
            write_lookup(w, set, *negated, None);
        }
        Expr::Vmap { keys, map } => {
            load_all(w, keys);
            write_lookup(w, map, false, Some(VERDICT_REGISTER));
        }
        Expr::Dispatch { keys, ids, chains } => {
            load_all(w, keys);
            // nft before 1.0.9 ends with an assertion while it lists a lookup of what another lookup has found. It goes by
            // the first word of a register: this load is what it takes the second one for, and the number, the second
            // word of what the first lookup finds, is what is there.
            load_meta(w, meta::MARK, register(FOUND + 1));
            lookup_from(w, REGISTER, ids, false, Some(register(FOUND)));
            lookup_from(w, register(FOUND + 1), chains, false, Some(VERDICT_REGISTER));
        }
        Expr::SetMark { mark, mask, value } => write_set_mark(w, *mark, *mask, *value),
        Expr::Counter => item(w, "counter", |_| {}),
        Expr::CountIn(name) => item(w, "objref", |w| {
            w.number(objref::TYPE, object::COUNTER);
            w.text(objref::NAME, name);
        }),
        Expr::Limit { packets, seconds, burst } => item(w, "limit", |w| {
            w.long(limit::RATE, *packets);
            w.long(limit::UNIT, *seconds);
            w.number(limit::BURST, *burst);
            w.number(limit::TYPE, limit::PACKETS);
            w.number(limit::FLAGS, 0);
        }),
        Expr::Log { group, prefix, snaplen } => item(w, "log", |w| {
            w.bytes(log::GROUP, &group.to_be_bytes());
            if !prefix.is_empty() {
                w.text(log::PREFIX, prefix);
            }
            if let Some(snaplen) = snaplen {
                w.number(log::SNAPLEN, *snaplen);
            }
        }),
        Expr::Masquerade => item(w, "masq", |_| {}),
        Expr::Reject => item(w, "reject", |w| {
            w.number(reject::TYPE, reject::ICMPX);
            w.bytes(reject::CODE, &[reject::ADMIN_PROHIBITED]);
        }),
        Expr::Verdict(verdict) => item(w, "immediate", |w| {
            w.number(immediate::DREG, VERDICT_REGISTER);
            w.nest(immediate::DATA, |w| write_verdict(w, verdict));
        }),
        Expr::Unknown { name, data } => item(w, name, |w| w.0.extend(data)),
    }
}

fn item(w: &mut Writer, name: &str, content: impl FnOnce(&mut Writer)) {
    w.nest(rule::LIST_ITEM, |w| {
        w.text(rule::EXPR_NAME, name);
        w.nest(rule::EXPR_DATA, content);
    });
}

/// Compares the family of a packet: of a bridge's frames by what they carry.
fn write_family(w: &mut Writer, table: TableFamily, family: Family) {
    match table {
        TableFamily::Inet => {
            load_meta(w, meta::NFPROTO, REGISTER);
            write_cmp(w, equality(false), &[family.protocol()]);
        }
        TableFamily::Bridge => {
            load_meta(w, meta::PROTOCOL, REGISTER);
            write_cmp(w, equality(false), &family.ether_type().to_be_bytes());
        }
    }
}

/// Loads the parts of a key one behind the other, each from a multiple of four bytes on.
/// Where the first lookup of a dispatch leaves what it finds, in words behind the first register and an address.
pub(super) const FOUND: u8 = 4;

fn load_all(w: &mut Writer, keys: &[Load]) {
    let mut words = 0u8;
    for key in keys {
        load(w, *key, words);
        words = words.saturating_add(key.width().div_ceil(4));
    }
}

/// Loads a value so many times four bytes behind the first register.
fn load(w: &mut Writer, of: Load, words: u8) {
    let to = register(words);
    match of {
        Load::Link(Direction::In) => load_meta(w, meta::IIFNAME, to),
        Load::Link(Direction::Out) => load_meta(w, meta::OIFNAME, to),
        Load::L4Proto => load_meta(w, meta::L4PROTO, to),
        Load::Mark => load_meta(w, meta::MARK, to),
        Load::CtMark => load_ct(w, ct::MARK, None, to),
        Load::CtState => load_ct(w, ct::STATE, None, to),
        Load::CtAddress(direction, family, end) => load_ct(w, ct_address(family, end), Some(direction), to),
        Load::CtPort(direction, End::Source) => load_ct(w, ct::PROTO_SRC, Some(direction), to),
        Load::CtPort(direction, End::Destination) => load_ct(w, ct::PROTO_DST, Some(direction), to),
        Load::CtProtocol => load_ct(w, ct::PROTOCOL, None, to),
        Load::Address(..)
        | Load::Port(_)
        | Load::TcpFlags
        | Load::IcmpType
        | Load::EtherSource
        | Load::Raw { .. } => {
            if let Some((header, offset)) = of.payload() {
                load_payload(w, header, offset, of.width(), to);
            }
        }
    }
}

/// The key of an address of a connection.
pub(super) fn ct_address(family: Family, end: End) -> u32 {
    match (family, end) {
        (Family::V4, End::Source) => ct::SRC_IP,
        (Family::V4, End::Destination) => ct::DST_IP,
        (Family::V6, End::Source) => ct::SRC_IP6,
        (Family::V6, End::Destination) => ct::DST_IP6,
    }
}

fn load_meta(w: &mut Writer, key: u32, to: u32) {
    item(w, "meta", |w| {
        w.number(meta::KEY, key);
        w.number(meta::DREG, to);
    });
}

fn load_ct(w: &mut Writer, key: u32, direction: Option<CtDirection>, to: u32) {
    item(w, "ct", |w| {
        w.number(ct::KEY, key);
        w.number(ct::DREG, to);
        if let Some(direction) = direction {
            w.bytes(ct::DIRECTION, &[u8::from(direction == CtDirection::Reply)]);
        }
    });
}

fn load_payload(w: &mut Writer, header: Header, offset: u8, len: u8, to: u32) {
    item(w, "payload", |w| {
        let base = match header {
            Header::Link => payload::LINK_HEADER,
            Header::Network => payload::NETWORK_HEADER,
            Header::Transport => payload::TRANSPORT_HEADER,
        };
        w.number(payload::DREG, to);
        w.number(payload::BASE, base);
        w.number(payload::OFFSET, offset.into());
        w.number(payload::LEN, len.into());
    });
}

fn compare(w: &mut Writer, of: Load, value: &[u8], negated: bool) {
    load(w, of, 0);
    write_cmp(w, equality(negated), value);
}

fn equality(negated: bool) -> u32 {
    if negated { cmp::NOT_EQUAL } else { cmp::EQUAL }
}

fn write_cmp(w: &mut Writer, op: u32, value: &[u8]) {
    item(w, "cmp", |w| {
        w.number(cmp::SREG, REGISTER);
        w.number(cmp::OP, op);
        w.nest(cmp::DATA, |w| w.bytes(data::VALUE, value));
    });
}

/// A range is two comparisons, "outside of it" one expression: as `nft` does.
fn write_number(w: &mut Writer, of: Load, (first, last): (u16, u16), negated: bool) {
    load(w, of, 0);
    let (from, to) = (number_bytes(of, first), number_bytes(of, last));
    if first == last {
        write_cmp(w, equality(negated), &from);
    } else if negated {
        item(w, "range", |w| {
            w.number(range::SREG, REGISTER);
            w.number(range::OP, range::OUTSIDE);
            w.nest(range::FROM, |w| w.bytes(data::VALUE, &from));
            w.nest(range::TO, |w| w.bytes(data::VALUE, &to));
        });
    } else {
        write_cmp(w, cmp::AT_LEAST, &from);
        write_cmp(w, cmp::AT_MOST, &to);
    }
}

/// Loads an address whole and compares its first bytes, or its first bits alone.
fn write_net(w: &mut Writer, of: Load, net: IpNet, negated: bool) {
    let (family, prefix) = (Family::of(net.addr()), net.prefix_len());
    load(w, of, 0);
    let mut value = family.octets(number(net.network()));
    if prefix != 0 && prefix.is_multiple_of(8) {
        value.truncate(usize::from(prefix / 8));
    } else {
        write_bitwise(w, &family.octets(family.mask(prefix)), &family.octets(0));
    }
    write_cmp(w, equality(negated), &value);
}

fn write_bitwise(w: &mut Writer, mask: &[u8], xor: &[u8]) {
    item(w, "bitwise", |w| {
        w.number(bitwise::SREG, REGISTER);
        w.number(bitwise::DREG, REGISTER);
        w.number(bitwise::LEN, u32::try_from(mask.len()).unwrap_or(u32::MAX));
        w.nest(bitwise::MASK, |w| w.bytes(data::VALUE, mask));
        w.nest(bitwise::XOR, |w| w.bytes(data::VALUE, xor));
    });
}

fn write_lookup(w: &mut Writer, set: &str, negated: bool, to: Option<u32>) {
    lookup_from(w, REGISTER, set, negated, to);
}

fn lookup_from(w: &mut Writer, from: u32, set: &str, negated: bool, to: Option<u32>) {
    item(w, "lookup", |w| {
        w.number(lookup::SREG, from);
        w.text(lookup::SET, set);
        if let Some(to) = to {
            w.number(lookup::DREG, to);
        }
        if negated {
            w.number(lookup::FLAGS, lookup::INVERTED);
        }
    });
}

fn write_set_mark(w: &mut Writer, mark: Mark, mask: u32, value: u32) {
    let of = mark.load();
    if mask == u32::MAX {
        item(w, "immediate", |w| {
            w.number(immediate::DREG, REGISTER);
            w.nest(immediate::DATA, |w| w.bytes(data::VALUE, &bits(of, value)));
        });
    } else {
        load(w, of, 0);
        write_bitwise(w, &bits(of, !mask), &bits(of, value));
    }
    match mark {
        Mark::Packet => item(w, "meta", |w| {
            w.number(meta::KEY, meta::MARK);
            w.number(meta::SREG, REGISTER);
        }),
        Mark::Connection => item(w, "ct", |w| {
            w.number(ct::KEY, ct::MARK);
            w.number(ct::SREG, REGISTER);
        }),
    }
}

/// Writes a verdict as data of an expression or of an element.
pub(crate) fn write_verdict(w: &mut Writer, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Accept => (verdict::ACCEPT, None),
        Verdict::Drop => (verdict::DROP, None),
        Verdict::Return => (verdict::RETURN, None),
        Verdict::Jump(chain) => (verdict::JUMP, Some(chain)),
        Verdict::Goto(chain) => (verdict::GOTO, Some(chain)),
    };
    w.nest(data::VERDICT, |w| {
        w.number(data::VERDICT_CODE, code);
        if let Some(chain) = chain {
            w.text(data::VERDICT_CHAIN, chain);
        }
    });
}
