//! Datagrams of the kernel's: links, addresses, routes, rules, nftables. Nothing in them ends the agent.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| {
    kilo_host::fuzzing::netlink(datagram);
    let mut dump = kilo_nftables::Dump::new("kilo");
    if dump.read(datagram).is_ok() {
        let _read = dump.finish();
    }
});
