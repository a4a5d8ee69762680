//! Keys of 32 bytes. A secret one can be used and written to a file, never printed.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Standard base64 with padding; like Go's decoder it lets unused bits of the last letter be set.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Why a text is not a key. It never holds the text: that may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not standard base64.
    #[error("not base64")]
    Base64,
    /// The text decodes to a number of bytes other than 32.
    #[error("{0} bytes long, a WireGuard key has 32")]
    Length(usize),
    /// All bytes are zero, which stands for no key.
    #[error("all zero, which stands for no key")]
    Zero,
}

/// Decodes a key; line breaks are skipped, as Go's decoder does, which wrote the keys in the field.
fn decode(text: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let text: Zeroizing<Vec<u8>> =
        Zeroizing::new(text.bytes().filter(|b| !matches!(b, b'\r' | b'\n')).collect());
    let bytes = Zeroizing::new(BASE64.decode(text.as_slice()).map_err(|_| KeyError::Base64)?);
    let key: [u8; 32] = bytes.as_slice().try_into().map_err(|_| KeyError::Length(bytes.len()))?;
    if key == [0; 32] { Err(KeyError::Zero) } else { Ok(Zeroizing::new(key)) }
}

/// A Curve25519 public key. Its text form is base64, as `wg` prints it; its order is that of the bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key of these 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(s: &str) -> Result<Self, KeyError> {
        Ok(Self(*decode(s)?))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;
    fn try_from(s: String) -> Result<Self, KeyError> {
        s.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 44];
        let n = BASE64.encode_slice(self.0, &mut text).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&text[..n]).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What both kinds of secret have in common: wiped from memory, compared, never printed.
macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(Zeroizing<[u8; 32]>);

        impl $name {
            /// The key of these 32 bytes.
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(Zeroizing::new(bytes))
            }

            /// The 32 secret bytes, for a device.
            pub fn secret_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The secret as base64, for a file or a configuration text; wiped when dropped.
            pub fn secret_base64(&self) -> Zeroizing<String> {
                Zeroizing::new(BASE64.encode(*self.0))
            }
        }

        impl FromStr for $name {
            type Err = KeyError;
            fn from_str(s: &str) -> Result<Self, KeyError> {
                Ok(Self(decode(s)?))
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                // Every byte is looked at, so that the time taken tells nothing.
                self.0.iter().zip(other.0.iter()).fold(0, |acc, (a, b)| acc | (a ^ b)) == 0
            }
        }

        impl Eq for $name {}

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    };
}

secret! {
    /// A Curve25519 private key.
    PrivateKey
}

secret! {
    /// A symmetric key that two peers share beside their key pairs.
    PresharedKey
}

impl PrivateKey {
    /// Makes a private key of 32 random bytes, clamped as RFC 7748 §5 says.
    pub fn from_random(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        Self::from_bytes(bytes)
    }

    /// The public key that belongs to this private key.
    pub fn public_key(&self) -> PublicKey {
        let secret = x25519_dalek::StaticSecret::from(*self.0);
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "a2V5MgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    #[test]
    fn text_round_trips() {
        let key: PublicKey = KEY.parse().expect("a key");
        assert_eq!(key.to_string(), KEY);
        assert_eq!(&key.as_bytes()[..4], b"key2");
    }

    #[test]
    fn line_breaks_are_skipped_and_other_blanks_are_not() {
        assert_eq!(format!("{KEY}\r\n").parse::<PublicKey>(), KEY.parse());
        assert_eq!(format!(" {KEY}").parse::<PublicKey>(), Err(KeyError::Base64));
    }

    #[test]
    fn wrong_lengths_and_zero_are_told_apart() {
        assert_eq!("".parse::<PublicKey>(), Err(KeyError::Length(0)));
        assert_eq!("AAAA".parse::<PublicKey>(), Err(KeyError::Length(3)));
        assert_eq!("?".parse::<PublicKey>(), Err(KeyError::Base64));
        let zero = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        assert_eq!(zero.parse::<PublicKey>(), Err(KeyError::Zero));
    }

    #[test]
    fn secrets_do_not_print_themselves() {
        let key: PrivateKey = KEY.parse().expect("a key");
        let psk: PresharedKey = KEY.parse().expect("a key");
        assert_eq!(format!("{key:?} {psk:?}"), "PrivateKey(…) PresharedKey(…)");
    }

    /// A pair that `wg pubkey` made.
    #[test]
    fn public_key_is_that_of_wg() {
        let private: PrivateKey = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqXXf3pR25LCo=".parse().expect("a key");
        assert_eq!(private.public_key().to_string(), "i/UpUiSOHF5hVIvHsfguIQagj1GnI2eQYkOGQo+in3E=");
    }
}
