//! Everything that a pure crate may not do, once: .ci/check-guards asks clippy whether it sees all of it.
use std::collections::{HashMap, HashSet};
use std::net::ToSocketAddrs;
use std::time::{Duration, Instant, SystemTime};

pub fn clock(wall: SystemTime, steady: Instant) {
    let _ = (SystemTime::now(), Instant::now(), wall.elapsed(), steady.elapsed());
}

pub fn threads() {
    let _ = std::thread::spawn(|| {});
    std::thread::scope(|_| {});
    std::thread::sleep(Duration::ZERO);
}

pub fn environment() {
    let _ = (std::env::var("A"), std::env::var_os("A"), std::env::vars(), std::env::vars_os());
    let _ = (std::env::args(), std::env::args_os(), std::env::current_dir());
}

pub fn files() {
    let _ = (std::fs::read("a"), std::fs::read_to_string("a"), std::fs::read_dir("a"), std::fs::write("a", "b"));
    let _ = (std::fs::metadata("a"), std::fs::remove_file("a"), std::fs::rename("a", "b"));
    let _ = (std::fs::create_dir("a"), std::fs::create_dir_all("a"));
    let _ = (std::fs::File::open("a"), std::fs::File::create("a"), std::fs::OpenOptions::new());
}

pub fn programs() {
    let _ = std::process::Command::new("a");
    std::process::exit(1)
}

pub fn sockets(address: &std::net::SocketAddr) {
    let _ = (std::net::UdpSocket::bind("a"), std::net::TcpListener::bind("a"), std::net::TcpStream::connect("a"));
    let _ = (std::net::TcpStream::connect_timeout(address, Duration::ZERO), "a:1".to_socket_addrs());
}

pub fn order(map: &mut HashMap<u8, u8>, set: &mut HashSet<u8>) {
    let _ = map.iter().count() + map.keys().count() + map.values().count() + set.iter().count();
    let _ = map.iter_mut().count() + map.values_mut().count();
    let _ = (map.clone().into_keys(), map.clone().into_values());
    let _ = (map.drain().count(), set.drain().count());
    for item in &*set {
        let _ = item;
    }
}

pub struct Hidden(std::cell::RefCell<u8>, std::sync::Mutex<u8>, std::sync::RwLock<u8>);
