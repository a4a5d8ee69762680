//! Sorting many ranges and keys by numbers: an order of ten thousands of them is most of what a plan costs.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kilo_wireguard::PublicKey;

/// The places of these ranges in the order of the ranges, equal ones in the order they stand.
pub(crate) fn of_nets(nets: impl ExactSizeIterator<Item = IpNet>) -> Vec<u32> {
    let mut v4: Vec<u128> = Vec::with_capacity(nets.len());
    let mut v6: Vec<(u128, u64)> = Vec::new();
    for (i, net) in (0_u32..).zip(nets) {
        let rest = u64::from(net.prefix_len()) << 32 | u64::from(i);
        match net {
            IpNet::V4(net) => v4.push(u128::from(u32::from(net.addr())) << 64 | u128::from(rest)),
            IpNet::V6(net) => v6.push((u128::from(net.addr()), rest)),
        }
    }
    v4.sort_unstable();
    v6.sort_unstable();
    // The low 32 bits are the place.
    v4.into_iter().map(|k| k as u32).chain(v6.into_iter().map(|(_, rest)| rest as u32)).collect()
}

/// The ranges sorted, each once.
pub(crate) fn sorted(nets: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
    let mut v4: Vec<u64> = Vec::new();
    let mut v6: Vec<(u128, u8)> = Vec::new();
    let nets = nets.into_iter();
    v4.reserve(nets.size_hint().0);
    for net in nets {
        match net {
            IpNet::V4(net) => v4.push(u64::from(u32::from(net.addr())) << 8 | u64::from(net.prefix_len())),
            IpNet::V6(net) => v6.push((net.addr().into(), net.prefix_len())),
        }
    }
    v4.sort_unstable();
    v4.dedup();
    v6.sort_unstable();
    v6.dedup();
    let mut out = Vec::with_capacity(v4.len() + v6.len());
    // Both lengths come from ranges, so that both are within bounds.
    out.extend(v4.into_iter().filter_map(|k| {
        let addr = u32::try_from(k >> 8).ok()?;
        Ipv4Net::new(addr.into(), (k & 0xff) as u8).ok().map(IpNet::V4)
    }));
    out.extend(v6.into_iter().filter_map(|(addr, len)| Ipv6Net::new(addr.into(), len).ok().map(IpNet::V6)));
    out
}

/// The places of these keys in the order of the keys, equal ones in the order they stand.
pub(crate) fn of_keys(keys: &[&PublicKey]) -> Vec<u32> {
    let prefix = |key: &PublicKey| {
        let [a, b, c, d, e, f, g, h, ..] = *key.as_bytes();
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    };
    let mut packed: Vec<u128> =
        (0_u32..).zip(keys).map(|(i, key)| u128::from(prefix(key)) << 32 | u128::from(i)).collect();
    packed.sort_unstable();
    let mut order: Vec<u32> = packed.into_iter().map(|k| k as u32).collect();
    // Keys are random numbers: that two begin alike is a copied key or somebody's joke.
    for alike in order.chunk_by_mut(|&a, &b| prefix(keys[a as usize]) == prefix(keys[b as usize])) {
        if alike.len() > 1 {
            alike.sort_by_key(|&i| (keys[i as usize], i));
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets() -> Vec<IpNet> {
        [
            "fd00::/64",
            "10.0.0.0/8",
            "10.0.0.0/16",
            "9.0.0.0/8",
            "::/0",
            "10.0.0.0/8",
            "0.0.0.0/0",
            "fd00::/48",
        ]
        .map(|s| s.parse().expect("a range"))
        .to_vec()
    }

    #[test]
    fn the_order_is_that_of_the_type() {
        let nets = nets();
        let mut expected: Vec<u32> = (0..nets.len() as u32).collect();
        expected.sort_by_key(|&i| nets[i as usize]);
        assert_eq!(of_nets(nets.iter().copied()), expected);
        let mut once = nets.clone();
        once.sort();
        once.dedup();
        assert_eq!(sorted(nets), once);
    }

    #[test]
    fn keys_that_begin_alike_are_told_apart() {
        let mut low = [7; 32];
        low[31] = 1;
        let keys = [[9; 32], [7; 32], low, [7; 32]].map(PublicKey::from_bytes);
        assert_eq!(of_keys(&keys.iter().collect::<Vec<_>>()), [2, 1, 3, 0]);
    }
}
