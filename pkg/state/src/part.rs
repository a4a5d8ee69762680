//! The parts of a state that one change has touched, so that they alone are compared.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use ipnet::IpNet;
use kilo_nftables::Ranges;
use kilo_wireguard::PublicKey;

use crate::{Desired, Device, DevicePeer, Observed, ObservedRoute, Op, Route, diff};

/// Which parts of a desired state a change has touched. Kernel parameters are few and always among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Peers of the device.
    pub peers: BTreeSet<PublicKey>,
    /// Routes by table and destination.
    pub routes: BTreeSet<(u32, IpNet)>,
    /// Sets of our nftables table, each with the addresses where its ranges have changed.
    pub elements: BTreeMap<Box<str>, Ranges>,
}

/// The operations of [`diff`], where all that was not touched is as desired already. The work is that of the
/// touched parts and of a few searches.
pub fn diff_touched(desired: &Desired, observed: &Observed, touched: &Touched) -> Vec<Op> {
    diff(&touched.of_desired(desired), &touched.of_observed(observed))
}

impl Touched {
    /// Whether nothing was touched.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.routes.is_empty() && self.elements.is_empty()
    }

    fn of_desired(&self, desired: &Desired) -> Desired {
        let route = |id: &(u32, IpNet)| {
            let places = places(&desired.routes, |route| (route.table, route.dst).cmp(id));
            desired.routes.get(places).unwrap_or_default()
        };
        Desired {
            device: desired.device.as_ref().map(|device| self.of_device(device)),
            routes: self.routes.iter().flat_map(route).copied().collect::<Vec<Route>>(),
            neighbours: desired.neighbours.clone(),
            table: desired.table.as_ref().map(|table| table.part(&self.elements)),
            sysctls: desired.sysctls.clone(),
            ..Desired::default()
        }
    }

    fn of_observed(&self, observed: &Observed) -> Observed {
        let route = |id: &(u32, IpNet)| {
            let places = places(&observed.routes, |seen| (seen.route.table, seen.route.dst).cmp(id));
            observed.routes.get(places).unwrap_or_default()
        };
        Observed {
            device: observed.device.as_ref().map(|device| self.of_device(device)),
            routes: self.routes.iter().flat_map(route).copied().collect::<Vec<ObservedRoute>>(),
            table: observed.table.as_ref().map(|table| table.part(&self.elements)),
            sysctls: observed.sysctls.clone(),
            ..Observed::default()
        }
    }

    fn of_device(&self, device: &Device) -> Device {
        let peer = |key: &PublicKey| {
            let at = device.peers.binary_search_by_key(key, |peer| peer.public_key).ok()?;
            device.peers.get(at).cloned()
        };
        Device {
            public_key: device.public_key,
            listen_port: device.listen_port,
            peers: self.peers.iter().filter_map(peer).collect::<Vec<DevicePeer>>(),
        }
    }
}

/// The places of the items that are equal by an order that the list is sorted by.
pub(crate) fn places<T>(list: &[T], order: impl Fn(&T) -> Ordering) -> Range<usize> {
    let start = list.partition_point(|item| order(item).is_lt());
    start..list.partition_point(|item| order(item).is_le())
}
