//! `ipBlock`: a range of addresses, less some ranges in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kilo_object::{Field, Notes, Unreadable};

/// A range of addresses of one family with exceptions of the same family. Host bits are zero.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The range.
    pub cidr: IpNet,
    /// What of it does not count; sorted, no two with an address in common.
    pub except: Box<[IpNet]>,
}

impl Block {
    /// Whether an address is in the range and in no exception.
    pub fn contains(&self, address: IpAddr) -> bool {
        let above = self.except.partition_point(|range| range.network() <= address);
        self.cidr.contains(&address)
            && !self.except[..above].last().is_some_and(|range| range.contains(&address))
    }

    pub(crate) fn read(field: &Field<'_, '_>, notes: &mut Notes) -> Result<Self, Unreadable> {
        field.only(&["cidr", "except"], notes)?;
        let cidr = range(&field.get("cidr"), notes)?;
        let mut except = Vec::new();
        for field in field.get("except").items(notes)? {
            let range = range(&field, notes)?;
            if range.addr().is_ipv4() != cidr.addr().is_ipv4() {
                return Err(notes.wrong(&field, "must be of the family of the cidr"));
            }
            if range.prefix_len() <= cidr.prefix_len() || !cidr.contains(&range) {
                notes.remark(&field, "should be a smaller range in the cidr; taken for what it is");
            }
            except.push(range);
        }
        // A range in another one, or twice the same, changes nothing.
        Ok(Self { cidr, except: IpNet::aggregate(&except).into() })
    }
}

fn range(field: &Field<'_, '_>, notes: &mut Notes) -> Result<IpNet, Unreadable> {
    let text = field.text(notes)?.unwrap_or_default();
    let Some(range) = parse(text) else {
        return Err(notes.wrong(field, "must be a range of addresses such as 10.5.0.0/16"));
    };
    if range.trunc() != range {
        notes.remark(field, "has bits set behind its length, which are not looked at");
    } else if range.to_string() != text && range.addr().is_ipv4() {
        notes.remark(field, "has leading zeros; read as decimal numbers");
    }
    Ok(range.trunc())
}

/// Objects from before stricter validation may have leading zeros, which are decimal, and host bits.
fn parse(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let length = u8::try_from(decimal(length, 128)?).ok()?;
    if address.contains(':') {
        return Ipv6Net::new(address.parse::<Ipv6Addr>().ok()?, length).ok().map(IpNet::V6);
    }
    let mut bits = 0_u32;
    let mut parts = 0;
    for part in address.split('.') {
        bits = (bits << 8) | decimal(part, 255)?;
        parts += 1;
    }
    if parts != 4 {
        return None;
    }
    Ipv4Net::new(Ipv4Addr::from(bits), length).ok().map(IpNet::V4)
}

fn decimal(text: &str, most: u32) -> Option<u32> {
    if text.is_empty() || text.len() > 16 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|number| *number <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_old_objects_hold_and_no_more() {
        let text = |s: &str| parse(s).map(|r| r.to_string());
        assert_eq!(text("10.5.0.0/16").as_deref(), Some("10.5.0.0/16"));
        assert_eq!(text("010.05.000.1/08").as_deref(), Some("10.5.0.1/8"));
        assert_eq!(text("FD00:0::/08").as_deref(), Some("fd00::/8"));
        for bad in [
            "",
            "/",
            "10.5.0.0",
            "10.5.0.0/",
            "10.5.0/8",
            "10.5.0.0.0/8",
            "10.5.0.256/8",
            "10.5.0.0/33",
            "10.5.0.0/-1",
            "+10.5.0.0/8",
            "10.5..0/8",
            "fe80::1%eth0/64",
            "fd00::/129",
            "10.5.0.0/8/8",
            " 10.5.0.0/8",
            "99999999999999999999.0.0.0/8",
            "::g/3",
        ] {
            assert_eq!(text(bad), None, "{bad}");
        }
    }
}
