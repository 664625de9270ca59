//! The static and the dynamic table (RFC 7541 sections 2.3 and 4).

use std::collections::VecDeque;

use super::HpackError;

/// The dynamic table's largest size: the default of SETTINGS_HEADER_TABLE_SIZE, which our server never changes.
pub(super) const MAX_SIZE: usize = 4096;
/// What an entry or a field counts beyond its bytes (RFC 7541 section 4.1).
pub(super) const OVERHEAD: usize = 32;

/// The fields a client had indexed, newest first.
#[derive(Debug)]
pub(super) struct DynamicTable {
    /// The entries' names and values, oldest first, behind bytes of evicted ones. Never above `2 * MAX_SIZE`, so that
    /// moving the living to the front is rare and nothing is allocated once it has grown.
    bytes: Vec<u8>,
    /// Newest at the front.
    entries: VecDeque<Entry>,
    size: usize,
    max_size: usize,
}

#[derive(Debug)]
struct Entry {
    start: usize,
    name_len: usize,
    value_len: usize,
}

impl Entry {
    fn size(&self) -> usize {
        self.name_len + self.value_len + OVERHEAD
    }
}

impl DynamicTable {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), entries: VecDeque::new(), size: 0, max_size: MAX_SIZE }
    }

    /// The `nth` newest entry, from 0, as name and value.
    pub(super) fn entry(&self, nth: usize) -> Option<(&[u8], &[u8])> {
        let entry = self.entries.get(nth)?;
        let (name, rest) = self.bytes[entry.start..].split_at(entry.name_len);
        Some((name, &rest[..entry.value_len]))
    }

    /// Adds a field and evicts the oldest for it. A field larger than the table empties it, which is no error (RFC 7541
    /// section 4.4).
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let entry = Entry { start: 0, name_len: name.len(), value_len: value.len() };
        self.evict_down_to(self.max_size.saturating_sub(entry.size()));
        if entry.size() > self.max_size {
            return;
        }
        if self.bytes.len() + name.len() + value.len() > 2 * MAX_SIZE {
            self.compact();
        }
        self.size += entry.size();
        self.entries.push_front(Entry { start: self.bytes.len(), ..entry });
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
    }

    /// Follows a size update of the client (RFC 7541 section 6.3).
    pub(super) fn resize(&mut self, max_size: usize) -> Result<(), HpackError> {
        if max_size > MAX_SIZE {
            return Err(HpackError::TableSize);
        }
        self.max_size = max_size;
        self.evict_down_to(max_size);
        Ok(())
    }

    fn evict_down_to(&mut self, size: usize) {
        while self.size > size {
            let Some(oldest) = self.entries.pop_back() else { break };
            self.size -= oldest.size();
        }
        if self.entries.is_empty() {
            self.bytes.clear();
        }
    }

    fn compact(&mut self) {
        let dead = self.entries.back().map_or(self.bytes.len(), |oldest| oldest.start);
        self.bytes.drain(..dead);
        for entry in &mut self.entries {
            entry.start -= dead;
        }
    }

    /// Bytes of memory held.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    /// The size by RFC 7541 section 4.1.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }
}

/// RFC 7541, Appendix A. Indexes on the wire start at 1.
#[rustfmt::skip]
pub(crate) const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];
