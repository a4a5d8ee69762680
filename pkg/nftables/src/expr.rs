//! Our expressions as those of the kernel, and back. One of ours is up to five of theirs: load the family,
//! compare it, load an address, mask it, compare it or look it up.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::attr::{Attributes, Writer};
use crate::kernel::{
    REGISTER, VERDICT_REGISTER, bitwise, cmp, data, immediate, lookup, meta, payload, rule, verdict,
};
use crate::range::{address, number};
use crate::{Addresses, Direction, End, Expr, Family, IfName, Verdict};

impl Family {
    /// Bytes of an address.
    pub(crate) fn width(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// Where an address stands in the header of the packet.
    fn offset(self, end: End) -> u32 {
        match (self, end) {
            (Self::V4, End::Source) => 12,
            (Self::V4, End::Destination) => 16,
            (Self::V6, End::Source) => 8,
            (Self::V6, End::Destination) => 24,
        }
    }

    fn protocol(self) -> u8 {
        match self {
            Self::V4 => meta::IPV4,
            Self::V6 => meta::IPV6,
        }
    }

    /// The last bytes of a number, as many as an address has.
    fn octets(self, number: u128) -> Vec<u8> {
        number.to_be_bytes()[16 - usize::from(self.width())..].to_vec()
    }

    /// The mask of a prefix.
    fn mask(self, prefix: u8) -> u128 {
        let host_bits = u32::from(self.width() * 8 - prefix);
        self.highest() & u128::MAX.checked_shl(host_bits).unwrap_or(0)
    }
}

/// Writes the items of a rule's list. A packet's family is compared once before its addresses, as `nft` does.
pub(crate) fn write(w: &mut Writer, exprs: &[Expr]) {
    let mut fixed = None;
    for expr in exprs {
        match expr {
            Expr::NfProto(family) => {
                write_meta(w, meta::NFPROTO, &[family.protocol()], false);
                fixed = Some(*family);
            }
            Expr::L4Proto(protocol) => write_meta(w, meta::L4PROTO, &[*protocol], false),
            Expr::Link { direction, name, negated } => {
                let key = match direction {
                    Direction::In => meta::IIFNAME,
                    Direction::Out => meta::OIFNAME,
                };
                let mut padded = [0; meta::NAME_LEN];
                for (to, from) in padded.iter_mut().zip(name.as_str().bytes()) {
                    *to = from;
                }
                write_meta(w, key, &padded, *negated);
            }
            Expr::Address { end, among, negated } => {
                let family = among.family();
                if fixed != Some(family) {
                    write_meta(w, meta::NFPROTO, &[family.protocol()], false);
                    fixed = Some(family);
                }
                write_address(w, *end, among, *negated);
            }
            Expr::Counter => item(w, "counter", |_| {}),
            Expr::Masquerade => item(w, "masq", |_| {}),
            Expr::Verdict(verdict) => write_verdict(w, verdict),
            Expr::Unknown { name, data } => item(w, name, |w| w.0.extend(data)),
        }
    }
}

fn item(w: &mut Writer, name: &str, content: impl FnOnce(&mut Writer)) {
    w.nest(rule::LIST_ITEM, |w| {
        w.text(rule::EXPR_NAME, name);
        w.nest(rule::EXPR_DATA, content);
    });
}

fn write_meta(w: &mut Writer, key: u32, value: &[u8], negated: bool) {
    item(w, "meta", |w| {
        w.number(meta::KEY, key);
        w.number(meta::DREG, REGISTER);
    });
    write_cmp(w, value, negated);
}

fn write_cmp(w: &mut Writer, value: &[u8], negated: bool) {
    item(w, "cmp", |w| {
        w.number(cmp::SREG, REGISTER);
        w.number(cmp::OP, if negated { cmp::NOT_EQUAL } else { cmp::EQUAL });
        w.nest(cmp::DATA, |w| w.bytes(data::VALUE, value));
    });
}

fn write_address(w: &mut Writer, end: End, among: &Addresses, negated: bool) {
    let family = among.family();
    let load = |w: &mut Writer, len: u8| {
        item(w, "payload", |w| {
            w.number(payload::DREG, REGISTER);
            w.number(payload::BASE, payload::NETWORK_HEADER);
            w.number(payload::OFFSET, family.offset(end));
            w.number(payload::LEN, len.into());
        });
    };
    match among {
        Addresses::Set(_, name) => {
            load(w, family.width());
            item(w, "lookup", |w| {
                w.number(lookup::SREG, REGISTER);
                w.text(lookup::SET, name);
                if negated {
                    w.number(lookup::FLAGS, lookup::INVERTED);
                }
            });
        }
        Addresses::Net(net) => {
            let prefix = net.prefix_len();
            let value = family.octets(number(net.network()));
            // Of a prefix of whole bytes only those are loaded, as `nft` does.
            if prefix != 0 && prefix.is_multiple_of(8) {
                load(w, prefix / 8);
                write_cmp(w, &value[..usize::from(prefix / 8)], negated);
            } else {
                load(w, family.width());
                item(w, "bitwise", |w| {
                    w.number(bitwise::SREG, REGISTER);
                    w.number(bitwise::DREG, REGISTER);
                    w.number(bitwise::LEN, family.width().into());
                    let mask = family.octets(family.mask(prefix));
                    w.nest(bitwise::MASK, |w| w.bytes(data::VALUE, &mask));
                    w.nest(bitwise::XOR, |w| w.bytes(data::VALUE, &family.octets(0)));
                });
                write_cmp(w, &value, negated);
            }
        }
    }
}

fn write_verdict(w: &mut Writer, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Accept => (verdict::ACCEPT, None),
        Verdict::Drop => (verdict::DROP, None),
        Verdict::Return => (verdict::RETURN, None),
        Verdict::Jump(chain) => (verdict::JUMP, Some(chain)),
        Verdict::Goto(chain) => (verdict::GOTO, Some(chain)),
    };
    item(w, "immediate", |w| {
        w.number(immediate::DREG, VERDICT_REGISTER);
        w.nest(immediate::DATA, |w| {
            w.nest(data::VERDICT, |w| {
                w.number(data::VERDICT_CODE, code);
                if let Some(chain) = chain {
                    w.text(data::VERDICT_CHAIN, chain);
                }
            });
        });
    });
}

/// An expression of the kernel's.
#[derive(Clone, Copy)]
struct Raw<'a> {
    name: &'a str,
    data: Attributes<'a>,
}

/// Reads the items of a rule's list. What is not one of our forms stays as it is, unknown.
pub(crate) fn read(list: Attributes<'_>) -> Vec<Expr> {
    let raws: Vec<Raw<'_>> = list
        .filter(|(number, _)| *number == rule::LIST_ITEM)
        .map(|(_, item)| Attributes(item))
        .map(|item| Raw {
            name: item.text(rule::EXPR_NAME).unwrap_or_default(),
            data: item.nest(rule::EXPR_DATA).unwrap_or(Attributes(&[])),
        })
        .collect();
    let mut exprs = Vec::new();
    let mut fixed = None;
    let mut rest = &raws[..];
    while let [first, more @ ..] = rest {
        if let Some((expr, after)) = read_one(rest, fixed) {
            match &expr {
                Expr::NfProto(family) => fixed = Some(*family),
                Expr::Address { among, .. } => fixed = Some(among.family()),
                Expr::L4Proto(_)
                | Expr::Link { .. }
                | Expr::Counter
                | Expr::Masquerade
                | Expr::Verdict(_)
                | Expr::Unknown { .. } => {}
            }
            exprs.push(expr);
            rest = after;
        } else {
            exprs.push(Expr::Unknown { name: first.name.into(), data: first.data.0.into() });
            rest = more;
        }
    }
    exprs
}

type Read<'r, 'a, T> = Option<(T, &'r [Raw<'a>])>;

/// Reads one of our expressions from the front, in a rule that has compared the family already or not.
fn read_one<'r, 'a>(raws: &'r [Raw<'a>], fixed: Option<Family>) -> Read<'r, 'a, Expr> {
    let (first, rest) = raws.split_first()?;
    match first.name {
        "meta" => read_meta(first, rest),
        "payload" => read_address(raws, fixed?),
        "counter" => Some((Expr::Counter, rest)),
        "masq" => first.data.0.is_empty().then_some((Expr::Masquerade, rest)),
        "immediate" => Some((Expr::Verdict(read_verdict(first)?), rest)),
        _ => None,
    }
}

fn read_meta<'r, 'a>(first: &Raw<'a>, rest: &'r [Raw<'a>]) -> Read<'r, 'a, Expr> {
    if first.data.number(meta::DREG) != Some(REGISTER) {
        return None;
    }
    let ((value, negated), rest) = read_cmp(rest)?;
    let expr = match (first.data.number(meta::KEY)?, value, negated) {
        (meta::NFPROTO, [protocol], false) => {
            let family = [Family::V4, Family::V6].into_iter().find(|f| f.protocol() == *protocol)?;
            return read_address(rest, family).or(Some((Expr::NfProto(family), rest)));
        }
        (meta::L4PROTO, [protocol], false) => Expr::L4Proto(*protocol),
        (key @ (meta::IIFNAME | meta::OIFNAME), name, negated) if name.len() == meta::NAME_LEN => {
            let text = std::str::from_utf8(name).ok()?.trim_end_matches('\0');
            let direction = if key == meta::IIFNAME { Direction::In } else { Direction::Out };
            Expr::Link { direction, name: IfName::new(text)?, negated }
        }
        _ => return None,
    };
    Some((expr, rest))
}

/// Reads a comparison: the value, and whether it must differ.
fn read_cmp<'r, 'a>(raws: &'r [Raw<'a>]) -> Read<'r, 'a, (&'a [u8], bool)> {
    let (first, rest) = raws.split_first().filter(|(first, _)| first.name == "cmp")?;
    let negated = match first.data.number(cmp::OP)? {
        cmp::EQUAL => false,
        cmp::NOT_EQUAL => true,
        _ => return None,
    };
    let value = first.data.nest(cmp::DATA)?.get(data::VALUE)?;
    (first.data.number(cmp::SREG) == Some(REGISTER)).then_some(((value, negated), rest))
}

fn read_address<'r, 'a>(raws: &'r [Raw<'a>], family: Family) -> Read<'r, 'a, Expr> {
    let (first, rest) = raws.split_first().filter(|(first, _)| first.name == "payload")?;
    let is = |number, value| first.data.number(number) == Some(value);
    if !is(payload::DREG, REGISTER) || !is(payload::BASE, payload::NETWORK_HEADER) {
        return None;
    }
    let end = [End::Source, End::Destination].into_iter().find(|e| is(payload::OFFSET, family.offset(*e)))?;
    let len = first.data.number(payload::LEN)?;
    let whole = len == u32::from(family.width());
    let (second, after) = rest.split_first()?;
    let (among, negated, rest) = match second.name {
        "lookup" if whole => {
            let (name, negated) = read_lookup(second)?;
            (Addresses::Set(family, name.into()), negated, after)
        }
        "bitwise" if whole => {
            let prefix = read_mask(second, family)?;
            let ((value, negated), rest) = read_cmp(after)?;
            (read_net(family, value, prefix)?, negated, rest)
        }
        "cmp" => {
            let ((value, negated), rest) = read_cmp(rest)?;
            let prefix = u8::try_from(len.checked_mul(8)?).ok().filter(|_| value.len() == len as usize)?;
            (read_net(family, value, prefix)?, negated, rest)
        }
        _ => return None,
    };
    Some((Expr::Address { end, among, negated }, rest))
}

/// The network of a prefix whose first bytes are these.
fn read_net(family: Family, value: &[u8], prefix: u8) -> Option<Addresses> {
    let mut bytes = [0; 16];
    let start = 16 - usize::from(family.width());
    bytes.get_mut(start..start + value.len())?.copy_from_slice(value);
    let first: IpAddr = address(family, u128::from_be_bytes(bytes));
    let net = IpNet::new(first, prefix).ok()?;
    // With other bits set the comparison never holds, which no network says.
    (net == net.trunc()).then_some(Addresses::Net(net))
}

/// The prefix that a mask leaves, if it leaves one.
fn read_mask(raw: &Raw<'_>, family: Family) -> Option<u8> {
    let zeros = family.octets(0);
    let plain = raw.data.number(bitwise::SREG) == Some(REGISTER)
        && raw.data.number(bitwise::DREG) == Some(REGISTER)
        && raw.data.number(bitwise::LEN) == Some(family.width().into())
        && raw.data.number(bitwise::OP).is_none_or(|op| op == bitwise::MASK_XOR)
        && raw.data.nest(bitwise::XOR)?.get(data::VALUE)? == zeros;
    let mask = raw.data.nest(bitwise::MASK)?.get(data::VALUE)?;
    (0..=family.width() * 8).find(|prefix| plain && family.octets(family.mask(*prefix)) == mask)
}

/// The set that a lookup looks in, and whether it must not be found there.
fn read_lookup<'a>(raw: &Raw<'a>) -> Option<(&'a str, bool)> {
    let flags = raw.data.number(lookup::FLAGS).unwrap_or(0);
    let plain = raw.data.number(lookup::SREG) == Some(REGISTER)
        && raw.data.get(lookup::DREG).is_none()
        && flags & !lookup::INVERTED == 0;
    plain.then_some((raw.data.text(lookup::SET)?, flags == lookup::INVERTED))
}

fn read_verdict(raw: &Raw<'_>) -> Option<Verdict> {
    if raw.data.number(immediate::DREG) != Some(VERDICT_REGISTER) {
        return None;
    }
    let verdict = raw.data.nest(immediate::DATA)?.nest(data::VERDICT)?;
    let chain = || verdict.text(data::VERDICT_CHAIN).map(Into::into);
    Some(match verdict.number(data::VERDICT_CODE)? {
        verdict::ACCEPT => Verdict::Accept,
        verdict::DROP => Verdict::Drop,
        verdict::RETURN => Verdict::Return,
        verdict::JUMP => Verdict::Jump(chain()?),
        verdict::GOTO => Verdict::Goto(chain()?),
        _ => return None,
    })
}
