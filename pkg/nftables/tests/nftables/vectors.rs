//! Messages captured from `nft` 1.0.6 and its kernel: `vectors/batch.hex` is what `nft -f` sent for the table,
//! `vectors/dump.hex` what the kernel answered to `nft list`, `vectors/kilo.nft` what that printed.

use crate::table::table;
use kilo_nftables::{Dump, Expr, Interrupted, TableFamily, diff};

const BATCH: &str = include_str!("../vectors/batch.hex");
const DUMP: &str = include_str!("../vectors/dump.hex");
const TEXT: &str = include_str!("../vectors/kilo.nft");

/// One message a line.
fn messages(hex: &str) -> Vec<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    hex.lines().map(|line| line.as_bytes().chunks(2).map(byte).collect()).collect()
}

fn split(mut datagram: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while !datagram.is_empty() {
        let len = u32::from_ne_bytes(datagram[..4].try_into().unwrap()) as usize;
        all.push(datagram[..len].to_vec());
        datagram = &datagram[len.next_multiple_of(4)..];
    }
    all
}

#[test]
fn text_is_that_of_nft() {
    assert_eq!(table().to_text(), TEXT);
}

#[test]
fn dump_of_the_kernel_is_the_table() {
    let mut dump = Dump::new(TableFamily::Inet, "kilo");
    for message in messages(DUMP) {
        dump.read(&message).unwrap();
    }
    assert_eq!(dump.sets().collect::<Vec<_>>(), ["except4", "except6"]);
    assert_eq!(dump.finish(), Some(table()));
}

#[test]
fn other_tables_are_passed_over() {
    let mut dump = Dump::new(TableFamily::Inet, "kil");
    for message in messages(DUMP) {
        dump.read(&message).unwrap();
    }
    assert_eq!(dump.finish(), None);
}

/// Rules without a lookup, which in `nft`'s messages names the set twice, are the same byte for byte.
#[test]
fn rules_are_those_of_nft_byte_for_byte() {
    let ours = diff(None, Some(&table())).unwrap().encode(0, None);
    let is_rule =
        |message: &&Vec<u8>| message[4..6] == [6, 10] && !message.windows(6).any(|w| w == b"lookup");
    // All but the headers, where the sequence numbers differ.
    let body = |message: &Vec<u8>| message[16..].to_vec();
    let theirs: Vec<_> = messages(BATCH).iter().filter(is_rule).map(body).collect();
    let ours: Vec<_> = split(&ours.bytes).iter().filter(is_rule).map(body).collect();
    assert_eq!(theirs.len(), 7);
    assert_eq!(ours, theirs);
}

#[test]
fn batches_of_both_say_the_same() {
    let batch = diff(None, Some(&table())).unwrap().encode(7, None);
    let read = |all: Vec<Vec<u8>>| {
        let mut dump = Dump::new(TableFamily::Inet, "kilo");
        all.iter().for_each(|message| dump.read(message).unwrap());
        dump.finish()
    };
    assert_eq!(read(split(&batch.bytes)), Some(table()));
    assert_eq!(read(messages(BATCH)), Some(table()));
}

#[test]
fn batch_is_framed_and_acknowledged_once() {
    let batch = diff(None, Some(&table())).unwrap().encode(7, Some(0x0102_0304));
    let all = split(&batch.bytes);
    let seq = |m: &Vec<u8>| u32::from_ne_bytes(m[8..12].try_into().unwrap());
    let flags = |m: &Vec<u8>| u16::from_ne_bytes(m[6..8].try_into().unwrap());
    let (first, last) = (all.first().unwrap(), all.last().unwrap());
    assert_eq!(first[4..6], 0x10u16.to_ne_bytes());
    assert_eq!(first[16..], [0, 0, 0, 10, 8, 0, 1, 0, 1, 2, 3, 4]);
    assert_eq!(last[4..6], 0x11u16.to_ne_bytes());
    assert_eq!(all.iter().map(seq).collect::<Vec<_>>(), (7..7 + all.len() as u32).collect::<Vec<_>>());
    let acked: Vec<u32> = all.iter().filter(|m| flags(m) & 4 != 0).map(seq).collect();
    assert_eq!(acked, [batch.acknowledged]);
    assert_eq!(batch.acknowledged, seq(last) - 1);
    assert_eq!((batch.change(7), batch.change(8), batch.change(seq(last))), (None, Some(0), None));
}

#[test]
fn interrupted_dump_is_an_error() {
    let mut message = messages(DUMP).pop().unwrap();
    message[6] |= 0x10;
    assert_eq!(Dump::new(TableFamily::Inet, "kilo").read(&message), Err(Interrupted));
}

#[test]
fn unknown_expression_differs_from_everything() {
    let mut dump = Dump::new(TableFamily::Inet, "kilo");
    for mut message in messages(DUMP) {
        // The masquerade becomes an expression of another name.
        if let Some(at) = message.windows(7).position(|w| w == b"\x01\0masq\0") {
            message[at + 2..at + 6].copy_from_slice(b"moon");
        }
        dump.read(&message).unwrap();
    }
    let observed = dump.finish().unwrap();
    let unknown =
        observed.chains["a-masq"].rules[1].exprs().iter().any(|e| matches!(e, Expr::Unknown { .. }));
    assert!(unknown);
    let transaction = diff(Some(&observed), Some(&table())).unwrap();
    assert_eq!(transaction.apply(Some(observed)), Some(table()));
}

#[test]
fn broken_messages_do_no_harm() {
    for message in messages(DUMP) {
        for len in 0..message.len() {
            let mut dump = Dump::new(TableFamily::Inet, "kilo");
            let _ = dump.read(&message[..len]);
            let mut cut = message[..len].to_vec();
            if let Some(head) = cut.get_mut(..4) {
                head.copy_from_slice(&(len as u32).to_ne_bytes());
            }
            let _ = dump.read(&cut);
            dump.finish();
        }
    }
}
