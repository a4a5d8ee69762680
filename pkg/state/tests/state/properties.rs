//! What holds of any desired and any observed state.

use std::collections::BTreeSet;

use kilo_state::{
    Desired, Dev, MAIN_TABLE, Observed, ObservedRoute, Op, PROTOCOL, PROTOCOL_STATIC, Route, apply,
    apply_all, diff,
};
use proptest::prelude::*;

use crate::random::{any_desired, any_observed, as_observed, owners};

fn after(observed: &Observed, ops: &[Op]) -> Observed {
    let mut state = observed.clone();
    ops.iter().for_each(|op| apply(&mut state, op));
    state
}

/// Whether a state is what was desired, as far as it is managed.
fn satisfied(desired: &Desired, observed: &Observed) -> Result<(), TestCaseError> {
    for want in &desired.links {
        let link = observed.links.iter().find(|link| link.dev == want.dev);
        let Some(link) = link else { return Err(TestCaseError::fail(format!("no {}", want.name))) };
        prop_assert_eq!(want.up, link.up);
        prop_assert_eq!(want.mtu.unwrap_or(link.mtu), link.mtu);
        prop_assert_eq!(want.addresses.as_ref().unwrap_or(&link.addresses), &link.addresses);
    }
    for (dev, name) in &desired.remove_links {
        prop_assert!(observed.links.iter().all(|link| link.dev != *dev), "{} is still there", name);
    }
    let kilos = observed.routes.iter().filter(|r| is_kilos(desired, r));
    let routes: Vec<Route> = kilos.clone().map(|r| r.route).collect();
    prop_assert_eq!(&routes, &desired.routes);
    prop_assert!(kilos.clone().all(|r| r.protocol == PROTOCOL));
    prop_assert_eq!(&observed.leftovers, &vec![]);
    if let Some(want) = &desired.device {
        let device = observed.device.as_ref().unwrap();
        prop_assert_eq!((want.public_key, want.listen_port), (device.public_key, device.listen_port));
        prop_assert_eq!(want.peers.len(), device.peers.len());
        for (want, peer) in want.peers.iter().zip(&device.peers) {
            prop_assert_eq!(want.public_key, peer.public_key);
            prop_assert_eq!(&want.preshared_key, &peer.preshared_key);
            prop_assert_eq!(want.persistent_keepalive, peer.persistent_keepalive);
            prop_assert_eq!(want.endpoint.or(peer.endpoint), peer.endpoint);
        }
        let sets =
            |owners: &std::collections::BTreeMap<_, _>| owners.keys().copied().collect::<BTreeSet<_>>();
        prop_assert_eq!(sets(&owners(want)), sets(&owners(device)));
        let listed: usize = device.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
        prop_assert_eq!(listed, owners(device).len(), "a range of two peers");
    }
    prop_assert_eq!(&desired.rules, &observed.rules);
    prop_assert_eq!(&desired.forward, &observed.forward);
    prop_assert_eq!(&desired.table, &observed.table);
    prop_assert_eq!(desired.sysctls.get("net/ipv4/ip_forward"), observed.sysctls.get("net/ipv4/ip_forward"));
    if let (Some(want), Some(now)) = (&desired.cni, &observed.cni) {
        prop_assert_eq!(want, now);
    }
    Ok(())
}

/// Ours, or an upstream agent's: over the link with the private address by the gateway alone, which is a node.
fn is_kilos(desired: &Desired, r: &ObservedRoute) -> bool {
    let to_node = r.route.via.is_some_and(|via| desired.neighbours.contains(&via));
    let plain = r.route.table == MAIN_TABLE && r.route.src.is_none() && r.route.onlink;
    let of_upstream = to_node && plain && r.route.dev == Dev::Private && r.protocol == PROTOCOL_STATIC;
    r.is_ours() || of_upstream
}

fn foreign(desired: &Desired, observed: &Observed) -> Vec<ObservedRoute> {
    observed.routes.iter().filter(|r| !is_kilos(desired, r)).copied().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_is_right_is_not_touched(desired in any_desired()) {
        prop_assert_eq!(diff(&desired, &as_observed(&desired)), vec![]);
    }

    #[test]
    fn operations_lead_to_the_desired_state(desired in any_desired(), observed in any_observed()) {
        let reached = after(&observed, &diff(&desired, &observed));
        satisfied(&desired, &reached)?;
        prop_assert_eq!(diff(&desired, &reached), vec![]);
    }

    /// Wherever the work stops, the next comparison finishes it.
    #[test]
    fn any_part_of_the_operations_is_a_start(desired in any_desired(), observed in any_observed()) {
        let ops = diff(&desired, &observed);
        for done in 0..ops.len() {
            let halfway = after(&observed, &ops[..done]);
            let reached = after(&halfway, &diff(&desired, &halfway));
            satisfied(&desired, &reached)?;
            prop_assert_eq!(diff(&desired, &reached), vec![]);
        }
    }

    /// One operation may fail without the others.
    #[test]
    fn any_operation_may_fail(desired in any_desired(), observed in any_observed()) {
        let ops = diff(&desired, &observed);
        for failed in 0..ops.len() {
            let mut rest = ops.clone();
            rest.remove(failed);
            let halfway = after(&observed, &rest);
            let reached = after(&halfway, &diff(&desired, &halfway));
            satisfied(&desired, &reached)?;
            prop_assert_eq!(diff(&desired, &reached), vec![]);
        }
    }

    /// Many operations at once do what they do one by one, whatever they are for.
    #[test]
    fn operations_together_are_those_one_by_one(
        observed in any_observed(),
        others in prop::collection::vec((any_desired(), any_observed()), 1..5),
    ) {
        let mut ops: Vec<Op> = others.iter().flat_map(|(a, b)| diff(a, b)).collect();
        ops.sort_by_key(|op| (op.stage(), op.kind()));
        let mut state = observed.clone();
        apply_all(&mut state, &ops.iter().collect::<Vec<_>>());
        prop_assert_eq!(state, after(&observed, &ops));
    }

    #[test]
    fn routes_of_others_stay(desired in any_desired(), observed in any_observed()) {
        let reached = foreign(&desired, &after(&observed, &diff(&desired, &observed)));
        let in_the_way = |r: &ObservedRoute| {
            desired.routes.iter().any(|want| (want.table, want.dst) == (r.route.table, r.route.dst))
        };
        for route in foreign(&desired, &observed) {
            prop_assert!(reached.contains(&route) || in_the_way(&route), "{:?}", route);
        }
    }

    #[test]
    fn operations_come_by_stage_and_once(desired in any_desired(), observed in any_observed()) {
        let ops = diff(&desired, &observed);
        prop_assert!(ops.is_sorted_by_key(Op::stage), "{:?}", ops);
        let texts: BTreeSet<String> = ops.iter().map(|op| format!("{op:?}")).collect();
        prop_assert_eq!(texts.len(), ops.len());
        let set = ops.iter().filter_map(|op| {
            if let Op::AddRoute(r) | Op::ReplaceRoute(r) = op { Some((r.table, r.dst)) } else { None }
        });
        let set: Vec<_> = set.collect();
        prop_assert_eq!(set.iter().collect::<BTreeSet<_>>().len(), set.len());
    }

    /// What frees a range comes before what claims it.
    #[test]
    fn peers_go_before_peers_come(desired in any_desired(), observed in any_observed()) {
        let rank = |op: &Op| ["- peer", "~ peer", "+ peer"].iter().position(|sign| {
            op.kind() == "peer" && op.display(&Default::default()).to_string().starts_with(sign)
        });
        let ranks: Vec<_> = diff(&desired, &observed).iter().filter_map(rank).collect();
        prop_assert!(ranks.is_sorted());
    }

    /// Links that nobody named stay as they are.
    #[test]
    fn links_go_only_by_name(desired in any_desired(), observed in any_observed()) {
        let named: Vec<Dev> = desired.remove_links.iter().map(|(dev, _)| *dev).collect();
        let reached = after(&observed, &diff(&desired, &observed));
        for link in &observed.links {
            prop_assert!(named.contains(&link.dev) || reached.links.iter().any(|l| l.dev == link.dev));
        }
    }
}
