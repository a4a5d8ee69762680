//! The rules of discovery, one by one.

use super::*;

/// Links 1.. of these names, with these addresses by name; the default route over this one.
struct Machine {
    links: Vec<LinkState>,
    addresses: Vec<LinkAddress>,
    default_link: Option<u32>,
}

impl Machine {
    fn new(links: &[(&str, &[&str])], default: &str) -> Self {
        let mut machine = Self { links: Vec::new(), addresses: Vec::new(), default_link: None };
        for (at, (name, nets)) in links.iter().enumerate() {
            let index = at as u32 + 1;
            machine.links.push(LinkState { index, name: (*name).into(), mtu: 1500, up: true });
            machine.addresses.extend(nets.iter().map(|net| (index, net.parse::<IpNet>().unwrap())));
            if *name == default {
                machine.default_link = Some(index);
            }
        }
        machine
    }

    fn find(&self, hostname: &[&str], config: &DiscoverConfig) -> Found {
        let hostname: Vec<IpAddr> = hostname.iter().map(|ip| ip.parse().unwrap()).collect();
        let listing = Listing {
            links: &self.links,
            addresses: &self.addresses,
            default_link: self.default_link,
            hostname: &hostname,
            ignored: &["kilo0", "kube-bridge", "tunl0"],
        };
        discover(&listing, config)
    }

    /// Private address, address of the endpoint, link; as text.
    fn texts(&self, hostname: &[&str], config: &DiscoverConfig) -> (String, String, u32) {
        let found = self.find(hostname, config);
        let text = |net: Option<IpNet>| net.map_or("-".to_owned(), |net| net.to_string());
        (text(found.internal), text(found.external), found.private_link.unwrap_or_default())
    }
}

fn any() -> DiscoverConfig {
    DiscoverConfig::default()
}

fn is(found: &(String, String, u32), internal: &str, external: &str, link: u32) {
    assert_eq!((found.0.as_str(), found.1.as_str(), found.2), (internal, external, link));
}

#[test]
fn the_hostname_comes_before_the_default_route_and_that_before_the_rest() {
    let machine = Machine::new(
        &[
            ("lo", &["127.0.0.1/8"]),
            ("eth0", &["10.0.0.1/24"]),
            ("eth1", &["10.1.0.1/24"]),
            ("a0", &["10.2.0.1/24"]),
        ],
        "eth1",
    );
    is(&machine.texts(&["10.2.0.1"], &any()), "10.2.0.1/24", "10.2.0.1/24", 4);
    is(&machine.texts(&["127.0.0.1", "10.9.9.9"], &any()), "10.1.0.1/24", "10.1.0.1/24", 3);
    let mut no_default = machine;
    no_default.default_link = None;
    is(&no_default.texts(&[], &any()), "10.0.0.1/24", "10.0.0.1/24", 2);
}

#[test]
fn ipv4_comes_first_then_the_text_decides() {
    let machine = Machine::new(&[("eth0", &["fd00::1/64", "10.0.0.9/24", "10.0.0.10/24"])], "eth0");
    is(&machine.texts(&[], &any()), "10.0.0.10/24", "10.0.0.10/24", 1);
    let six = Machine::new(&[("eth0", &["fe80::1/64", "fd00::2/64", "2001:db8::1/64"])], "eth0");
    is(&six.texts(&[], &any()), "fd00::2/64", "2001:db8::1/64", 1);
}

#[test]
fn public_and_private_are_kept_apart() {
    let machine = Machine::new(&[("eth0", &["203.0.113.7/24"]), ("eth1", &["192.168.1.7/24"])], "eth0");
    is(&machine.texts(&[], &any()), "192.168.1.7/24", "203.0.113.7/24", 2);
    let prefer = DiscoverConfig { prioritise_private_addresses: true, ..any() };
    is(&machine.texts(&[], &prefer), "192.168.1.7/24", "192.168.1.7/24", 2);
    let only_public = Machine::new(&[("eth0", &["203.0.113.7/24"])], "eth0");
    is(&only_public.texts(&[], &prefer), "-", "203.0.113.7/24", 0);
    // As upstream has it: shared address space and other unique local addresses count as public.
    let odd = Machine::new(&[("eth0", &["100.64.0.1/10", "fd12::1/64"])], "eth0");
    is(&odd.texts(&[], &any()), "-", "100.64.0.1/10", 0);
}

#[test]
fn internal_cidr_holds_for_private_addresses_alone() {
    let machine =
        Machine::new(&[("eth0", &["10.0.0.1/24", "203.0.113.7/24"]), ("eth1", &["172.16.5.1/24"])], "eth0");
    let within = |cidr: &str| DiscoverConfig { internal_cidrs: vec![cidr.parse().unwrap()], ..any() };
    is(&machine.texts(&[], &within("172.16.0.0/12")), "172.16.5.1/24", "203.0.113.7/24", 2);
    is(&machine.texts(&[], &within("203.0.113.7/32")), "-", "203.0.113.7/24", 0);
}

#[test]
fn links_of_the_mesh_and_of_pods_are_ignored() {
    let machine = Machine::new(
        &[("kilo0", &["10.4.0.1/16"]), ("kube-bridge", &["10.2.1.1/24"]), ("tunl0", &["10.2.1.1/32"])],
        "kilo0",
    );
    is(&machine.texts(&["10.4.0.1"], &any()), "-", "-", 0);
}

#[test]
fn an_address_of_two_links_has_the_mask_of_the_first_by_name() {
    let machine = Machine::new(&[("b0", &["10.0.0.1/24"]), ("a0", &["10.0.0.1/32"])], "b0");
    is(&machine.texts(&["10.0.0.1"], &any()), "10.0.0.1/32", "10.0.0.1/32", 1);
}

#[test]
fn a_machine_without_addresses_has_none() {
    let machine = Machine::new(&[("lo", &["127.0.0.1/8", "::1/128"]), ("eth0", &["169.254.3.4/16"])], "eth0");
    is(&machine.texts(&["127.0.0.1"], &any()), "-", "-", 0);
}
