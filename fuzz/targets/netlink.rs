//! Datagrams of the kernel's: links, addresses, routes, rules, nftables. Nothing in them ends the agent.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| {
    kilo_host::fuzzing::netlink(datagram);
    for family in [kilo_nftables::TableFamily::Inet, kilo_nftables::TableFamily::Bridge] {
        let mut dump = kilo_nftables::Dump::new(family, "kilo");
        if dump.read(datagram).is_ok() {
            let _text = dump.finish().map(|table| table.to_text());
        }
    }
});
