//! Named pieces in one file that is believed whole or not at all: a backup.
//!
//! 16 bytes of [`MAGIC`]; one byte that says what follows, plain (0) or sealed (1); for sealed ones the salt (16 bytes), the
//! rounds (4 bytes, big-endian) and the nonce (12 bytes); then the body, and behind a plain one its SHA-256. The body of a
//! sealed one is encrypted with AES-256-GCM by a key that PBKDF2 (HMAC-SHA-256) makes of a passphrase; all before it is
//! bound to it. The body is the title and the pieces, as records of [`super::frames`].
//!
//! A checksum shows damage, not malice: whoever can write a plain archive can write another one. A sealed one cannot be
//! changed without the passphrase, nor another one put in its place: who reads with a passphrase is given no plain one.

use std::num::NonZeroU32;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::pbkdf2;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::entropy::Entropy;
use super::frames;
use super::secret::Secret;

/// Begins every archive; ends in the version.
const MAGIC: &[u8; 16] = b"tether archive\0\x01";
const PLAIN: u8 = 0;
const SEALED: u8 = 1;
const SALT_LEN: usize = 16;
const SUM_LEN: usize = 32;
const KEY_LEN: usize = 32;
/// What PBKDF2 is run for new archives: about half a second, for each guess too.
const ROUNDS: u32 = 1_000_000;
/// More rounds than anybody would have written: a damaged number must not keep a reader busy.
const MOST_ROUNDS: u32 = 10 * ROUNDS;

/// Why a file is no archive that can be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ArchiveError {
    /// It begins otherwise.
    #[error("it is no backup made by `tether backup`")]
    Foreign,
    /// A newer program wrote it.
    #[error("it was made by a newer version (format {0}): restore it with that one")]
    Newer(u8),
    /// It is not what was written.
    #[error("it is damaged or not complete: use another copy of it")]
    Damaged,
    /// It is sealed, and no passphrase was given.
    #[error("it is sealed with a passphrase: name the file that holds it with --passphrase-file")]
    Sealed,
    /// A passphrase was given, and it is not sealed: it need not be what was sealed once.
    #[error("it is not sealed, so anybody can have made it: leave --passphrase-file out if that is meant")]
    NotSealed,
    /// It does not open: another passphrase, or changed bytes. Which of the two cannot be told.
    #[error("it does not open: the passphrase is another one, or the file is damaged")]
    Locked,
}

/// Named pieces and what they are about. Wiped when dropped: there may be keys among them.
#[derive(Debug, Default)]
pub struct Archive {
    title: String,
    pieces: Vec<(String, Secret<Vec<u8>>)>,
}

/// What an archive is sealed with: a key made of a passphrase, and how it was made, which the archive says.
///
/// Made by whoever has the passphrase, so that who seals need not have it.
#[derive(Debug)]
pub struct Sealer {
    salt: [u8; SALT_LEN],
    rounds: u32,
    key: Secret<[u8; KEY_LEN]>,
}

impl Sealer {
    /// Makes the key of a passphrase, which takes about half a second. What it is worth is what its file holds, so let it be
    /// random.
    pub fn of_passphrase(passphrase: &Secret<Vec<u8>>, entropy: &Entropy) -> Self {
        Self::derive(passphrase, entropy.bytes(), ROUNDS)
    }

    /// One that was made elsewhere; `None` where the parts cannot be those of one.
    pub fn from_parts(salt: &[u8], rounds: u32, key: &[u8]) -> Option<Self> {
        let key = Secret::new(key.try_into().ok()?);
        let is_one = (1..=MOST_ROUNDS).contains(&rounds);
        is_one.then_some(Self { salt: salt.try_into().ok()?, rounds, key })
    }

    /// The salt.
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// How often PBKDF2 was run.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// The key.
    pub fn key(&self) -> &Secret<[u8; KEY_LEN]> {
        &self.key
    }

    fn derive(passphrase: &Secret<Vec<u8>>, salt: [u8; SALT_LEN], rounds: u32) -> Self {
        let mut key = Secret::new([0; KEY_LEN]);
        let times = NonZeroU32::new(rounds).unwrap_or(NonZeroU32::MIN);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, times, &salt, passphrase.expose(), key.expose_mut());
        Self { salt, rounds, key }
    }

    fn cipher(&self) -> LessSafeKey {
        let key = UnboundKey::new(&AES_256_GCM, self.key.expose());
        LessSafeKey::new(key.expect("the array has the length of the algorithm"))
    }
}

/// A sealed archive, taken apart.
struct Sealed<'a> {
    salt: [u8; SALT_LEN],
    rounds: u32,
    /// All before the nonce.
    bound: &'a [u8],
    nonce: [u8; NONCE_LEN],
    body: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// The whole content of a file, and what follows the byte that says that it is sealed.
    fn of(bytes: &'a [u8], rest: &'a [u8]) -> Result<Self, ArchiveError> {
        let (salt, rest) = rest.split_first_chunk().ok_or(ArchiveError::Damaged)?;
        let (rounds, rest) = rest.split_first_chunk().ok_or(ArchiveError::Damaged)?;
        let bound = &bytes[..bytes.len() - rest.len()];
        let (nonce, body) = rest.split_first_chunk().ok_or(ArchiveError::Damaged)?;
        let rounds = u32::from_be_bytes(*rounds);
        if !(1..=MOST_ROUNDS).contains(&rounds) {
            return Err(ArchiveError::Damaged);
        }
        Ok(Self { salt: *salt, rounds, bound, nonce: *nonce, body })
    }

    fn open(&self, sealer: &Sealer) -> Result<Archive, ArchiveError> {
        let mut body = Secret::new(self.body.to_vec());
        let nonce = Nonce::assume_unique_for_key(self.nonce);
        let opened = sealer.cipher().open_in_place(nonce, Aad::from(self.bound), body.expose_mut());
        let length = opened.map_err(|_| ArchiveError::Locked)?.len();
        Archive::of_body(&body.expose()[..length])
    }
}

#[derive(Serialize, Deserialize)]
struct Piece<'a> {
    name: &'a str,
    content: &'a [u8],
}

impl Archive {
    /// Nothing yet.
    pub fn new(title: String) -> Self {
        Self { title, pieces: Vec::new() }
    }

    /// What it is about.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Adds a piece.
    pub fn add(&mut self, name: impl Into<String>, content: impl Into<Secret<Vec<u8>>>) {
        self.pieces.push((name.into(), content.into()));
    }

    /// A piece by its name.
    pub fn piece(&self, name: &str) -> Option<&[u8]> {
        self.pieces.iter().find(|(known, _)| known == name).map(|(_, content)| content.expose().as_slice())
    }

    /// The pieces whose names begin so, by the rest of their names.
    pub fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let rest = move |(name, content): &'a (String, Secret<Vec<u8>>)| {
            Some((name.strip_prefix(prefix)?, content.expose().as_slice()))
        };
        self.pieces.iter().filter_map(rest)
    }

    fn body(&self) -> Secret<Vec<u8>> {
        let length: usize = self.pieces.iter().map(|(name, content)| name.len() + content.expose().len() + 32).sum();
        // Enough from the start: what grows leaves copies behind.
        let mut body = Vec::with_capacity(length + self.title.len() + 64);
        frames::write(&mut body, |mut to| {
            to.extend_from_slice(self.title.as_bytes());
            to
        });
        for (name, content) in &self.pieces {
            let piece = Piece { name, content: content.expose() };
            frames::write(&mut body, |to| postcard::to_extend(&piece, to).expect("a piece has no unsized parts"));
        }
        Secret::new(body)
    }

    fn of_body(body: &[u8]) -> Result<Self, ArchiveError> {
        let damaged = |_| ArchiveError::Damaged;
        let (title, mut rest) = frames::read(body).map_err(damaged)?;
        let title = String::from_utf8(title.to_vec()).map_err(|_| ArchiveError::Damaged)?;
        let mut archive = Self::new(title);
        while !rest.is_empty() {
            let (payload, after) = frames::read(rest).map_err(damaged)?;
            let piece: Piece<'_> = postcard::from_bytes(payload).map_err(|_| ArchiveError::Damaged)?;
            archive.add(piece.name, piece.content.to_vec());
            rest = after;
        }
        Ok(archive)
    }

    /// As the content of a file.
    pub fn to_bytes(&self) -> Secret<Vec<u8>> {
        let body = self.body();
        let mut bytes = Vec::with_capacity(MAGIC.len() + 1 + body.expose().len() + SUM_LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.push(PLAIN);
        bytes.extend_from_slice(body.expose());
        let sum = digest(&SHA256, &bytes);
        bytes.extend_from_slice(sum.as_ref());
        Secret::new(bytes)
    }

    /// The same, encrypted.
    pub fn seal(&self, sealer: &Sealer, entropy: &Entropy) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(SEALED);
        bytes.extend_from_slice(&sealer.salt);
        bytes.extend_from_slice(&sealer.rounds.to_be_bytes());
        let bound = Aad::from(bytes.clone());
        let nonce: [u8; NONCE_LEN] = entropy.bytes();
        bytes.extend_from_slice(&nonce);
        // Encrypted where it is: nothing of it is left in another place.
        let mut body = self.body();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = sealer.cipher().seal_in_place_separate_tag(nonce, bound, body.expose_mut());
        bytes.extend_from_slice(body.expose());
        bytes.extend_from_slice(tag.expect("a backup is shorter than AES-GCM allows").as_ref());
        bytes
    }

    /// Reads the content of a file: with a passphrase one that is sealed, and without one that is not.
    pub fn read(bytes: &[u8], passphrase: Option<&Secret<Vec<u8>>>) -> Result<Self, ArchiveError> {
        match (Self::kind(bytes)?, passphrase) {
            ((PLAIN, body), None) => Self::read_plain(bytes, body),
            ((PLAIN, _), Some(_)) => Err(ArchiveError::NotSealed),
            ((SEALED, _), None) => Err(ArchiveError::Sealed),
            ((SEALED, rest), Some(passphrase)) => {
                let sealed = Sealed::of(bytes, rest)?;
                sealed.open(&Sealer::derive(passphrase, sealed.salt, sealed.rounds))
            }
            (_, _) => Err(ArchiveError::Damaged),
        }
    }

    /// Reads the content of a file that was sealed with this.
    pub fn unseal(bytes: &[u8], sealer: &Sealer) -> Result<Self, ArchiveError> {
        match Self::kind(bytes)? {
            (SEALED, rest) => Sealed::of(bytes, rest)?.open(sealer),
            _ => Err(ArchiveError::NotSealed),
        }
    }

    /// The byte that says what follows, and what does.
    fn kind(bytes: &[u8]) -> Result<(u8, &[u8]), ArchiveError> {
        let (magic, rest) = bytes.split_first_chunk::<16>().ok_or(ArchiveError::Foreign)?;
        let (name, version) = MAGIC.split_at(MAGIC.len() - 1);
        if !magic.starts_with(name) {
            return Err(ArchiveError::Foreign);
        }
        if magic[name.len()] != version[0] {
            return Err(ArchiveError::Newer(magic[name.len()]));
        }
        rest.split_first().map(|(kind, rest)| (*kind, rest)).ok_or(ArchiveError::Damaged)
    }

    fn read_plain(bytes: &[u8], body: &[u8]) -> Result<Self, ArchiveError> {
        let (body, sum) = body.split_last_chunk::<SUM_LEN>().ok_or(ArchiveError::Damaged)?;
        let covered = &bytes[..bytes.len() - SUM_LEN];
        if digest(&SHA256, covered).as_ref() != sum {
            return Err(ArchiveError::Damaged);
        }
        Self::of_body(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Archive {
        let mut archive = Archive::new("of a node".to_owned());
        archive.add("store", b"rows".to_vec());
        archive.add("keys/a", vec![7; 100]);
        archive.add("keys/b", Vec::new());
        archive
    }

    fn passphrase(text: &str) -> Secret<Vec<u8>> {
        Secret::new(text.as_bytes().to_vec())
    }

    fn assert_is_it(read: &Archive) {
        assert_eq!((read.title(), read.piece("store")), ("of a node", Some(b"rows".as_slice())));
        let keys: Vec<_> = read.below("keys/").map(|(name, content)| (name, content.len())).collect();
        assert_eq!(keys, [("a", 100), ("b", 0)]);
    }

    #[test]
    fn what_is_put_in_comes_out_and_after_any_change_nothing_does() {
        let bytes = archive().to_bytes();
        let bytes = bytes.expose();
        assert_is_it(&Archive::read(bytes, None).unwrap());
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 4;
            assert!(Archive::read(&changed, None).is_err(), "byte {at}");
            assert!(Archive::read(&bytes[..at], None).is_err(), "cut at {at}");
        }
        assert_eq!(Archive::read(&[bytes, b"x".as_slice()].concat(), None).unwrap_err(), ArchiveError::Damaged);
        let mut newer = bytes.clone();
        newer[15] = 2;
        assert_eq!(Archive::read(&newer, None).unwrap_err(), ArchiveError::Newer(2));
        assert_eq!(Archive::read(b"PK\x03\x04", None).unwrap_err(), ArchiveError::Foreign);
    }

    #[test]
    fn a_sealed_one_shows_nothing_and_opens_with_its_passphrase_alone() {
        let right = passphrase("correct horse battery staple");
        let sealer = Sealer::of_passphrase(&right, &Entropy::system());
        let sealed = archive().seal(&sealer, &Entropy::system());
        assert!(!sealed.windows(4).any(|part| part == b"rows"));
        assert_is_it(&Archive::read(&sealed, Some(&right)).unwrap());
        let moved = Sealer::from_parts(sealer.salt(), sealer.rounds(), sealer.key().expose()).unwrap();
        assert_is_it(&Archive::unseal(&sealed, &moved).unwrap());
        assert_eq!(Archive::read(&sealed, None).unwrap_err(), ArchiveError::Sealed);
        assert_eq!(Archive::read(&sealed, Some(&passphrase("another"))).unwrap_err(), ArchiveError::Locked);
        for at in [17, 33, 40, 50, sealed.len() - 1] {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(Archive::read(&changed, Some(&right)).is_err(), "byte {at}");
        }
    }

    #[test]
    fn who_has_a_passphrase_is_given_nothing_that_is_not_sealed() {
        let swapped = archive().to_bytes();
        let read = Archive::read(swapped.expose(), Some(&passphrase("correct horse battery staple")));
        assert_eq!(read.unwrap_err(), ArchiveError::NotSealed);
    }

    #[test]
    fn a_file_cannot_ask_for_more_work_than_a_reader_should_do() {
        let right = passphrase("correct horse battery staple");
        let sealer = Sealer::from_parts(&[7; SALT_LEN], 1, &[8; KEY_LEN]).unwrap();
        let mut sealed = archive().seal(&sealer, &Entropy::system());
        sealed[17 + SALT_LEN..][..4].copy_from_slice(&(10 * ROUNDS + 1).to_be_bytes());
        assert_eq!(Archive::read(&sealed, Some(&right)).unwrap_err(), ArchiveError::Damaged);
        assert!(Sealer::from_parts(&[7; SALT_LEN], 10 * ROUNDS + 1, &[8; KEY_LEN]).is_none());
        assert!(Sealer::from_parts(&[7; SALT_LEN], 0, &[8; KEY_LEN]).is_none());
    }
}
