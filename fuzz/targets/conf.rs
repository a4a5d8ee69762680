//! WireGuard configurations: what can be read and written is the same text when it is read and written again.
#![no_main]

use kilo_wireguard::Conf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(conf) = Conf::parse(text) {
        let written = conf.to_text();
        let again = Conf::parse(&written).map(|conf| conf.to_text());
        assert_eq!(again.as_ref(), Ok(&written), "a configuration changes on its way");
    }
});
