//! Values as bytes, for other ranks and for drives: encoding by serde and bincode with limits on
//! lengths, and a frame with a checksum for values on drives.
//!
//! ```text
//! frame  | magic 8 | version u32 | crc32c u32 | length u64 | value |     little endian
//! ```
//!
//! The checksum covers version, length and value, and is compared before anything is decoded.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use crc_fast::CrcAlgorithm;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// The largest value in bytes; a larger length is damage.
const VALUE_BYTES_MAX: usize = 1 << 30;

const FORMAT: Configuration<LittleEndian, Fixint, Limit<VALUE_BYTES_MAX>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<VALUE_BYTES_MAX>();

const HEADER_BYTES: usize = 24;

/// CRC32C (Castagnoli; RFC 3720, appendix B.4).
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The CRC32C of two pieces end to end, from that of each and the length of the second.
pub fn crc32c_joined(first: u32, second: u32, second_bytes: u64) -> u32 {
    let (first, second) = (u64::from(first), u64::from(second));
    crc_fast::checksum_combine(CrcAlgorithm::Crc32Iscsi, first, second, second_bytes) as u32
}

/// Encodes a value as bytes, without a frame.
///
/// # Errors
/// Internal if the value is larger than 1 GiB.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    bincode::serde::encode_to_vec(value, FORMAT)
        .map_err(|error| Error::internal("a value cannot be encoded").because(error))
}

/// Decodes the value that all of these bytes together are.
///
/// # Errors
/// Internal if they are no such value, or are longer than one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    // Lengths within the value are allocated as they are read, up to the limit, which is a
    // constant. So a short value has a low limit: at most 16 times its bytes, or 64 KiB.
    macro_rules! decode_within {
        ($($limit:literal)*) => {
            match bytes.len() {
                $(0..=$limit => {
                    bincode::serde::decode_from_slice(bytes, FORMAT.with_limit::<$limit>())
                })*
                _ => bincode::serde::decode_from_slice(bytes, FORMAT),
            }
        };
    }
    match decode_within!(0x1_0000 0x10_0000 0x100_0000 0x1000_0000) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok(_) => Err(Error::internal("an encoded value is longer than it should be")),
        Err(error) => Err(Error::internal("an encoded value cannot be read").because(error)),
    }
}

/// The frame of one kind of value.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// The first eight bytes.
    pub magic: [u8; 8],
    /// The version that is written, and the only one that is read.
    pub version: u32,
}

/// What was found where a framed value should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsealed<T> {
    /// The value, whole.
    Value(T),
    /// Nothing, something else, or a value that was not written to its end; the text says which.
    Damaged(&'static str),
    /// A value of another version of the format.
    OtherVersion(u32),
}

impl Frame {
    /// Encodes a value and puts it into this frame.
    ///
    /// # Errors
    /// Internal if the value is larger than 1 GiB.
    pub fn seal<T: Serialize>(&self, value: &T) -> Result<Vec<u8>> {
        let value = encode(value)?;
        let mut sealed = Vec::with_capacity(HEADER_BYTES + value.len());
        sealed.extend_from_slice(&self.magic);
        sealed.extend_from_slice(&self.version.to_le_bytes());
        sealed.extend_from_slice(&[0; 4]);
        sealed.extend_from_slice(&(value.len() as u64).to_le_bytes());
        sealed.extend_from_slice(&value);
        let checksum = checksum_of(&sealed);
        sealed[12..16].copy_from_slice(&checksum.to_le_bytes());
        Ok(sealed)
    }

    /// Checks a frame and decodes its value. Bytes behind it are ignored.
    pub fn unseal<T: DeserializeOwned>(&self, bytes: &[u8]) -> Unsealed<T> {
        let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else {
            return Unsealed::Damaged("it is shorter than a header");
        };
        if header[..8] != self.magic {
            return Unsealed::Damaged("it does not begin as it should");
        }
        let number = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let len = u64::from(number(16)) | u64::from(number(20)) << 32;
        let Some(value) = usize::try_from(len).ok().and_then(|len| rest.get(..len)) else {
            return Unsealed::Damaged("it ends before its length");
        };
        if checksum_of(&bytes[..HEADER_BYTES + value.len()]) != number(12) {
            return Unsealed::Damaged("its checksum differs");
        }
        // After the checksum, so that a damaged version number is not taken for another version.
        let version = number(8);
        if version != self.version {
            return Unsealed::OtherVersion(version);
        }
        match decode(value) {
            Ok(value) => Unsealed::Value(value),
            Err(_) => Unsealed::Damaged("its value cannot be read"),
        }
    }
}

/// The checksum of everything but the magic and the checksum itself.
fn checksum_of(sealed: &[u8]) -> u32 {
    let (version, rest) = (&sealed[8..12], &sealed[16..]);
    crc32c_joined(crc32c(version), crc32c(rest), rest.len() as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FRAME: Frame = Frame { magic: *b"OPTSTEST", version: 3 };

    #[test]
    fn the_checksum_is_that_of_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c_joined(crc32c(b"1234"), crc32c(b"56789"), 5), 0xe306_9283);
    }

    #[test]
    fn another_version_is_not_taken_for_damage() {
        let sealed = Frame { version: 4, ..FRAME }.seal(&7u64).unwrap();
        assert_eq!(FRAME.unseal::<u64>(&sealed), Unsealed::OtherVersion(4));
        assert!(matches!(FRAME.unseal::<u64>(b""), Unsealed::Damaged(_)));
    }

    proptest! {
        #[test]
        fn a_value_comes_back_and_any_flipped_bit_is_found(
            value in prop::collection::vec(any::<(u64, String)>(), 0..20),
            rest in prop::collection::vec(any::<u8>(), 0..50),
            bit in any::<prop::sample::Index>(),
        ) {
            let mut sealed = FRAME.seal(&value).unwrap();
            let len = sealed.len();
            sealed.extend_from_slice(&rest);
            prop_assert_eq!(FRAME.unseal(&sealed), Unsealed::Value(value.clone()));
            let bit = bit.index(8 * len);
            sealed[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(matches!(
                FRAME.unseal::<Vec<(u64, String)>>(&sealed),
                Unsealed::Damaged(_)
            ));
        }

        #[test]
        fn anything_at_all_is_read_without_a_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            keeps_checksum in any::<bool>(),
        ) {
            if keeps_checksum && bytes.len() >= HEADER_BYTES {
                let len = (bytes.len() - HEADER_BYTES) as u64;
                bytes[..8].copy_from_slice(&FRAME.magic);
                bytes[8..12].copy_from_slice(&FRAME.version.to_le_bytes());
                bytes[16..24].copy_from_slice(&len.to_le_bytes());
                let checksum = checksum_of(&bytes);
                bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
            }
            let _ = FRAME.unseal::<Vec<(u64, Option<String>)>>(&bytes);
            let _ = decode::<Vec<(u64, Option<String>)>>(&bytes);
        }
    }
}
