//! What the kernel answers about its WireGuard device.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| kilo_host::fuzzing::wireguard(datagram));
