//! The numbers of `linux/netfilter/nf_tables.h` and `linux/netfilter/nfnetlink.h` that messages are made of.

/// `NFPROTO_INET`.
pub(crate) const INET: u8 = 1;
/// `NFPROTO_BRIDGE`.
pub(crate) const BRIDGE: u8 = 7;
/// `NFNL_SUBSYS_NFTABLES`.
pub(crate) const SUBSYSTEM: u16 = 10;
/// The first register of values, and the one that holds verdicts.
pub(crate) const REGISTER: u32 = 1;
pub(crate) const VERDICT_REGISTER: u32 = 0;

/// The register of values that begins so many times four bytes behind the first: the kernel lists those of 16
/// bytes, of which there are four, by other numbers than those between.
pub(crate) fn register(words: u8) -> u32 {
    if words.is_multiple_of(4) { REGISTER + u32::from(words / 4) } else { 8 + u32::from(words) }
}

/// Messages, their subsystem included where they have one.
pub(crate) mod msg {
    const fn nft(number: u16) -> u16 {
        super::SUBSYSTEM << 8 | number
    }
    pub const BATCH_BEGIN: u16 = 0x10;
    pub const BATCH_END: u16 = 0x11;
    pub const NEW_TABLE: u16 = nft(0);
    pub const GET_TABLE: u16 = nft(1);
    pub const DELETE_TABLE: u16 = nft(2);
    pub const NEW_CHAIN: u16 = nft(3);
    pub const GET_CHAIN: u16 = nft(4);
    pub const DELETE_CHAIN: u16 = nft(5);
    pub const NEW_RULE: u16 = nft(6);
    pub const GET_RULE: u16 = nft(7);
    pub const DELETE_RULE: u16 = nft(8);
    pub const NEW_SET: u16 = nft(9);
    pub const GET_SET: u16 = nft(10);
    pub const DELETE_SET: u16 = nft(11);
    pub const NEW_ELEMENTS: u16 = nft(12);
    pub const GET_ELEMENTS: u16 = nft(13);
    pub const DELETE_ELEMENTS: u16 = nft(14);
    pub const NEW_OBJECT: u16 = nft(18);
    pub const GET_OBJECT: u16 = nft(19);
    pub const DELETE_OBJECT: u16 = nft(20);
}

/// `NLM_F_*`.
pub(crate) mod flag {
    pub const REQUEST: u16 = 1;
    pub const ACK: u16 = 4;
    pub const DUMP_INTERRUPTED: u16 = 0x10;
    pub const DUMP: u16 = 0x300;
    pub const CREATE: u16 = 0x400;
    pub const APPEND: u16 = 0x800;
}

/// `NFNL_BATCH_*`.
pub(crate) mod batch {
    pub const GENERATION: u16 = 1;
}

/// `NFTA_TABLE_*`.
pub(crate) mod table {
    pub const NAME: u16 = 1;
    pub const FLAGS: u16 = 2;
    pub const OWNER: u32 = 2;
    pub const PERSIST: u32 = 4;
}

/// `NFTA_OBJ_*`, the only type of object in use, and `NFTA_COUNTER_*`.
pub(crate) mod object {
    pub const NAME: u16 = 2;
    pub const TYPE: u16 = 3;
    pub const DATA: u16 = 4;
    pub const COUNTER: u32 = 1;
    pub const BYTES: u16 = 1;
    pub const PACKETS: u16 = 2;
}

/// `NFTA_CHAIN_*`, `NFTA_HOOK_*` and policies.
pub(crate) mod chain {
    pub const NAME: u16 = 3;
    pub const HOOK: u16 = 4;
    pub const POLICY: u16 = 5;
    pub const TYPE: u16 = 7;
    pub const HOOK_NUMBER: u16 = 1;
    pub const HOOK_PRIORITY: u16 = 2;
    pub const DROP: u32 = 0;
    pub const ACCEPT: u32 = 1;
}

/// `NFTA_SET_*`, what `nft` writes beside them, and flags.
pub(crate) mod set {
    pub const NAME: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const KEY_TYPE: u16 = 4;
    pub const KEY_LEN: u16 = 5;
    pub const DATA_TYPE: u16 = 6;
    pub const DATA_LEN: u16 = 7;
    pub const ID: u16 = 10;
    pub const USER_DATA: u16 = 13;
    pub const INTERVAL: u32 = 4;
    pub const MAP: u32 = 8;
    pub const TIMEOUT: u32 = 0x10;
    /// `NFT_DATA_VERDICT`.
    pub const VERDICT: u32 = 0xffff_ff00;
    /// `nft`'s numbers for the types of its language.
    pub const IPV4_ADDR: u32 = 7;
    pub const IPV6_ADDR: u32 = 8;
    pub const INET_PROTO: u32 = 12;
    pub const INET_SERVICE: u32 = 13;
    pub const MARK: u32 = 19;
    pub const ICMPV6_TYPE: u32 = 29;
    pub const IFNAME: u32 = 41;
    /// Bits of each of them in the number of a concatenation.
    pub const TYPE_BITS: u32 = 6;
    /// `NFTNL_UDATA_SET_*BYTEORDER`.
    pub const KEY_BYTE_ORDER: u8 = 0;
    pub const DATA_BYTE_ORDER: u8 = 1;
    pub const HOST_ENDIAN: u32 = 1;
    pub const BIG_ENDIAN: u32 = 2;
}

/// `NFTA_SET_ELEM_LIST_*`, `NFTA_SET_ELEM_*`, `NFTA_DATA_*` and flags.
pub(crate) mod element {
    pub const SET: u16 = 2;
    pub const ELEMENTS: u16 = 3;
    pub const LIST_ITEM: u16 = 1;
    pub const KEY: u16 = 1;
    pub const DATA: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const TIMEOUT: u16 = 4;
    pub const INTERVAL_END: u32 = 1;
}

/// `NFTA_DATA_*` and `NFTA_VERDICT_*`.
pub(crate) mod data {
    pub const VALUE: u16 = 1;
    pub const VERDICT: u16 = 2;
    pub const VERDICT_CODE: u16 = 1;
    pub const VERDICT_CHAIN: u16 = 2;
}

/// `NF_*` and `NFT_*` verdicts, negative ones as they look in a message.
pub(crate) mod verdict {
    pub const DROP: u32 = 0;
    pub const ACCEPT: u32 = 1;
    pub const JUMP: u32 = (-3i32).cast_unsigned();
    pub const GOTO: u32 = (-4i32).cast_unsigned();
    pub const RETURN: u32 = (-5i32).cast_unsigned();
}

/// `NFTA_RULE_*`, `NFTA_EXPR_*`, and the comment in `nft`'s user data.
pub(crate) mod rule {
    pub const CHAIN: u16 = 2;
    pub const EXPRESSIONS: u16 = 4;
    pub const USER_DATA: u16 = 7;
    pub const LIST_ITEM: u16 = 1;
    pub const EXPR_NAME: u16 = 1;
    pub const EXPR_DATA: u16 = 2;
    /// `NFTNL_UDATA_RULE_COMMENT`.
    pub const COMMENT: u8 = 0;
}

/// `NFTA_META_*` and keys.
pub(crate) mod meta {
    pub const DREG: u16 = 1;
    pub const KEY: u16 = 2;
    pub const SREG: u16 = 3;
    pub const PROTOCOL: u32 = 1;
    pub const MARK: u32 = 3;
    pub const IIFNAME: u32 = 6;
    pub const OIFNAME: u32 = 7;
    pub const NFPROTO: u32 = 15;
    pub const L4PROTO: u32 = 16;
    pub const IPV4: u8 = 2;
    pub const IPV6: u8 = 10;
}

/// `NFTA_CT_*` and keys.
pub(crate) mod ct {
    pub const DREG: u16 = 1;
    pub const KEY: u16 = 2;
    pub const DIRECTION: u16 = 3;
    pub const SREG: u16 = 4;
    pub const STATE: u32 = 0;
    pub const MARK: u32 = 3;
    pub const PROTOCOL: u32 = 10;
    pub const PROTO_SRC: u32 = 11;
    pub const PROTO_DST: u32 = 12;
    pub const SRC_IP: u32 = 19;
    pub const DST_IP: u32 = 20;
    pub const SRC_IP6: u32 = 21;
    pub const DST_IP6: u32 = 22;
}

/// `NFTA_FIB_*` and flags.
pub(crate) mod fib {
    pub const DREG: u16 = 1;
    pub const RESULT: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const OIF: u32 = 1;
    pub const SOURCE: u32 = 1;
    pub const IIF: u32 = 8;
    pub const PRESENT: u32 = 0x20;
}

/// `NFTA_RANGE_*`.
pub(crate) mod range {
    pub const SREG: u16 = 1;
    pub const OP: u16 = 2;
    pub const FROM: u16 = 3;
    pub const TO: u16 = 4;
    pub const OUTSIDE: u32 = 1;
}

/// `NFTA_LIMIT_*`.
pub(crate) mod limit {
    pub const RATE: u16 = 1;
    pub const UNIT: u16 = 2;
    pub const BURST: u16 = 3;
    pub const TYPE: u16 = 4;
    pub const FLAGS: u16 = 5;
    pub const PACKETS: u32 = 0;
}

/// `NFTA_LOG_*`.
pub(crate) mod log {
    pub const GROUP: u16 = 1;
    pub const PREFIX: u16 = 2;
    pub const SNAPLEN: u16 = 3;
    pub const THRESHOLD: u16 = 4;
    pub const LEVEL: u16 = 5;
    pub const FLAGS: u16 = 6;
}

/// `NFTA_OBJREF_*`.
pub(crate) mod objref {
    pub const TYPE: u16 = 1;
    pub const NAME: u16 = 2;
}

/// `NFTA_REJECT_*`.
pub(crate) mod reject {
    pub const TYPE: u16 = 1;
    pub const CODE: u16 = 2;
    pub const ICMPX: u32 = 2;
    pub const ADMIN_PROHIBITED: u8 = 3;
}

/// `NFTA_CMP_*`.
pub(crate) mod cmp {
    pub const SREG: u16 = 1;
    pub const OP: u16 = 2;
    pub const DATA: u16 = 3;
    pub const EQUAL: u32 = 0;
    pub const NOT_EQUAL: u32 = 1;
    pub const AT_MOST: u32 = 3;
    pub const AT_LEAST: u32 = 5;
}

/// `NFTA_PAYLOAD_*`.
pub(crate) mod payload {
    pub const DREG: u16 = 1;
    pub const BASE: u16 = 2;
    pub const OFFSET: u16 = 3;
    pub const LEN: u16 = 4;
    pub const LINK_HEADER: u32 = 0;
    pub const NETWORK_HEADER: u32 = 1;
    pub const TRANSPORT_HEADER: u32 = 2;
}

/// `NFTA_BITWISE_*`.
pub(crate) mod bitwise {
    pub const SREG: u16 = 1;
    pub const DREG: u16 = 2;
    pub const LEN: u16 = 3;
    pub const MASK: u16 = 4;
    pub const XOR: u16 = 5;
    pub const OP: u16 = 6;
    pub const MASK_XOR: u32 = 0;
}

/// `NFTA_LOOKUP_*`.
pub(crate) mod lookup {
    pub const SET: u16 = 1;
    pub const SREG: u16 = 2;
    pub const DREG: u16 = 3;
    pub const FLAGS: u16 = 5;
    pub const INVERTED: u32 = 1;
}

/// `NFTA_IMMEDIATE_*`.
pub(crate) mod immediate {
    pub const DREG: u16 = 1;
    pub const DATA: u16 = 2;
}
