//! What others change. The kernel tells every change of the namespace to every listener; of that only what
//! touches this agent's work wakes it, and never its own changes.
//!
//! Routes, rules and nftables objects come with the port of the socket that asked for the change. Links and
//! IPv6 addresses come without on most kernels, so for these the monitor knows what the agent knows, and an
//! event that tells nothing new is dropped. The same goes for the destinations of our routes: somebody who
//! replaces one is told of only as a new route.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use ipnet::IpNet;
use kilo_agent::HostEvent;
use kilo_state::{PROTOCOL, PROTOCOL_STATIC, TABLE};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};
use rustix::io::Errno;

use super::link::LinkState;
use super::socket::{Message, enlarge, messages};
use super::{address, link, nftables, route, rule};

/// `RTNLGRP_LINK`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV4_RULE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`, `_IPV6_RULE`.
const ROUTE_GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];
/// `NFNLGRP_NFTABLES`.
const NFTABLES_GROUP: u32 = 7;
/// A datagram of notifications is one message, and a link's is the largest.
const RECEIVE: usize = 64 << 10;
/// How long to wait before the state is read again when nothing can be heard.
const BROKEN: Duration = Duration::from_secs(5);

/// What the agent knows of the network, which is what it need not be told.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Links by index.
    pub links: BTreeMap<u32, LinkState>,
    /// Addresses of all links.
    pub addresses: BTreeSet<(u32, IpNet)>,
    /// Table and destination of the routes that are ours.
    pub routes: BTreeSet<(u32, IpNet)>,
}

/// Which links and tables are looked at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interest {
    /// The WireGuard link.
    pub wireguard: String,
    /// The tunnel.
    pub tunnel: String,
    /// The links of the private address, of the default route and of a CNI.
    pub others: BTreeSet<String>,
    /// Our nftables table.
    pub table: String,
    /// Whether rules of ours stand in the FORWARD chains of iptables-nft.
    pub forward: bool,
}

/// What has happened since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pending {
    lost: bool,
    device: bool,
    routing: bool,
    firewall: bool,
}

impl Pending {
    fn add(&mut self, event: HostEvent) {
        match event {
            HostEvent::Lost => self.lost = true,
            HostEvent::Device => self.device = true,
            HostEvent::Routing => self.routing = true,
            HostEvent::Firewall => self.firewall = true,
        }
    }

    /// The weightiest event.
    fn take(&mut self) -> Option<HostEvent> {
        for (flag, event) in [
            (&mut self.lost, HostEvent::Lost),
            (&mut self.device, HostEvent::Device),
            (&mut self.routing, HostEvent::Routing),
            (&mut self.firewall, HostEvent::Firewall),
        ] {
            if std::mem::take(flag) {
                return Some(event);
            }
        }
        None
    }
}

/// The listener.
pub(crate) struct Monitor {
    route: TokioSocket,
    nftables: TokioSocket,
    buffer: Vec<u8>,
    pending: Pending,
    /// The link that this agent is at work on.
    absorbing: Option<String>,
    default_changed: bool,
    /// Ports of the sockets through which this agent changes things.
    own_ports: [u32; 2],
    pub known: Known,
    pub interest: Interest,
}

impl Monitor {
    /// Listens in the namespace of this thread.
    pub(crate) fn open(own_ports: [u32; 2], interest: Interest) -> io::Result<Self> {
        let listen = |protocol, groups: &[u32]| {
            let mut socket = TokioSocket::new(protocol)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            enlarge(socket.socket_ref());
            for group in groups {
                // A kernel without IPv6 has its groups all the same.
                socket.socket_ref().add_membership(*group)?;
            }
            io::Result::Ok(socket)
        };
        Ok(Self {
            route: listen(NETLINK_ROUTE, &ROUTE_GROUPS)?,
            nftables: listen(NETLINK_NETFILTER, &[NFTABLES_GROUP])?,
            buffer: Vec::with_capacity(RECEIVE),
            pending: Pending::default(),
            absorbing: None,
            default_changed: true,
            own_ports,
            known: Known::default(),
            interest,
        })
    }

    /// Waits for a change by somebody else. Nothing is lost when the future is dropped: what has been received
    /// is taken note of before it waits again.
    pub(crate) async fn changed(&mut self) -> HostEvent {
        loop {
            self.drain();
            if let Some(event) = self.pending.take() {
                return event;
            }
            let (route, nftables) = (&self.route, &self.nftables);
            let buffer = &mut self.buffer;
            buffer.clear();
            let (from_route, received) = poll_fn(|context| {
                if let Poll::Ready(received) = route.poll_recv(context, buffer) {
                    return Poll::Ready((true, received));
                }
                nftables.poll_recv(context, buffer).map(|received| (false, received))
            })
            .await;
            // From here to the next turn nothing waits, so that what was received cannot be lost.
            let received = received_as(received);
            if let Received::Broken = received {
                tracing::warn!("Changes by others cannot be heard of");
                tokio::time::sleep(BROKEN).await;
                return HostEvent::Lost;
            }
            let buffer = std::mem::take(&mut self.buffer);
            self.note(from_route, &received, &buffer);
            self.buffer = buffer;
        }
    }

    /// Takes note of what this agent did to a link, without waking for it.
    pub(crate) fn absorb(&mut self, link: &str) {
        self.absorbing = Some(link.to_owned());
        self.drain();
        self.absorbing = None;
    }

    /// Whether the default routes may have changed since this was last asked.
    pub(crate) fn take_default_changed(&mut self) -> bool {
        self.drain();
        std::mem::take(&mut self.default_changed)
    }

    /// Takes note of all that has been told so far.
    pub(crate) fn drain(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for from_route in [true, false] {
            loop {
                let socket = if from_route { &self.route } else { &self.nftables };
                buffer.clear();
                let received = received_as(socket.socket_ref().recv(&mut buffer, 0).map(|_| ()));
                if matches!(received, Received::Nothing | Received::Broken) {
                    break;
                }
                self.note(from_route, &received, &buffer);
            }
        }
        self.buffer = buffer;
    }

    /// Takes note of one datagram.
    fn note(&mut self, from_route: bool, received: &Received, datagram: &[u8]) {
        match received {
            Received::Datagram if from_route => {
                for message in messages(datagram) {
                    if let Some(event) = self.route_event(&message) {
                        self.pending.add(event);
                    }
                }
            }
            Received::Datagram => {
                if messages(datagram).any(|message| self.is_firewall_event(&message)) {
                    self.pending.add(HostEvent::Firewall);
                }
            }
            Received::Lost => {
                self.default_changed = true;
                self.pending.add(HostEvent::Lost);
            }
            Received::Again | Received::Nothing | Received::Broken => {}
        }
    }

    fn is_watched(&self, name: &str) -> bool {
        name == self.interest.wireguard || name == self.interest.tunnel || self.interest.others.contains(name)
    }

    fn link_name(&self, index: u32) -> Option<&str> {
        self.known.links.get(&index).map(|link| link.name.as_str())
    }

    fn route_event(&mut self, message: &Message<'_>) -> Option<HostEvent> {
        match message.kind {
            link::RTM_NEWLINK | link::RTM_DELLINK => self.link_event(message),
            address::RTM_NEWADDR | address::RTM_DELADDR => self.address_event(message),
            route::RTM_NEWROUTE | route::RTM_DELROUTE => {
                self.is_route_event(message).then_some(HostEvent::Routing)
            }
            rule::RTM_NEWRULE | rule::RTM_DELRULE => (!self.own_ports.contains(&message.port)
                && rule::parse(message).is_some())
            .then_some(HostEvent::Routing),
            _ => None,
        }
    }

    fn link_event(&mut self, message: &Message<'_>) -> Option<HostEvent> {
        let new = link::parse(message.payload)?;
        let index = new.index;
        let name = new.name.clone();
        let (old, came_or_went) = if message.kind == link::RTM_DELLINK {
            (Some(self.known.links.remove(&index)?), true)
        } else {
            let old = self.known.links.insert(index, new.clone());
            if old.as_ref() == Some(&new) {
                return None;
            }
            let renamed = old.as_ref().is_none_or(|old| old.name != new.name);
            (old, renamed)
        };
        let before = old.as_ref().map_or("", |old| old.name.as_str());
        if self.absorbing.as_ref().is_some_and(|own| own == before || *own == name) {
            return None;
        }
        if came_or_went && [before, &name].contains(&self.interest.wireguard.as_str()) {
            return Some(HostEvent::Device);
        }
        (self.is_watched(before) || self.is_watched(&name)).then_some(HostEvent::Routing)
    }

    fn address_event(&mut self, message: &Message<'_>) -> Option<HostEvent> {
        let address = address::parse(message)?;
        let news = if message.kind == address::RTM_NEWADDR {
            self.known.addresses.insert(address)
        } else {
            self.known.addresses.remove(&address)
        };
        let of = self.link_name(address.0);
        let own = self.absorbing.is_some() && of == self.absorbing.as_deref();
        let watched = of.is_none_or(|name| self.is_watched(name));
        (news && watched && !own).then_some(HostEvent::Routing)
    }

    /// Whether somebody touched a route of ours, one in our table, or the way out.
    fn is_route_event(&mut self, message: &Message<'_>) -> bool {
        if self.own_ports.contains(&message.port) {
            return false;
        }
        let Some(route) = route::parse(message) else { return false };
        self.default_changed |= route.dst.prefix_len() == 0;
        let own_link = self
            .link_name(route.link)
            .is_some_and(|name| name == self.interest.wireguard || name == self.interest.tunnel);
        route.table == TABLE
            || route.protocol == PROTOCOL
            || (route.protocol == PROTOCOL_STATIC && own_link)
            || self.known.routes.contains(&(route.table, route.dst))
            || route.dst.prefix_len() == 0
    }

    /// Whether somebody touched our table, or a FORWARD chain in which we have rules.
    fn is_firewall_event(&self, message: &Message<'_>) -> bool {
        if self.own_ports.contains(&message.port) {
            return false;
        }
        let Some(event) = nftables::parse_event(message) else { return false };
        let ours = event.family == nftables::NFPROTO_INET && event.table == self.interest.table;
        let forward = self.interest.forward
            && event.table == "filter"
            && [nftables::NFPROTO_IPV4, nftables::NFPROTO_IPV6].contains(&event.family)
            && event.chain.is_none_or(|chain| chain == "FORWARD");
        ours || forward
    }
}

/// What became of receiving.
enum Received {
    Datagram,
    Again,
    Nothing,
    Lost,
    Broken,
}

fn received_as(result: io::Result<()>) -> Received {
    match result {
        Ok(()) => Received::Datagram,
        Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::INTR) => Received::Again,
            Some(Errno::AGAIN) => Received::Nothing,
            Some(Errno::NOBUFS) => Received::Lost,
            _ => Received::Broken,
        },
    }
}
