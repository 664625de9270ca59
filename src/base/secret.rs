//! Values that must not be printed, compared carelessly, or left behind in memory.

use zeroize::Zeroize;

/// Bytes or text that only [`Secret::expose`] reveals: `Debug` is redacted and the memory is wiped on drop.
///
/// It is not `Clone` on purpose. What must share a secret shares it behind an `Arc`, so one wipe is the wipe.
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Takes ownership of the secret. The caller must not keep a copy.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The secret itself. Every call is a place to review: the result must not reach a log, an error or a file.
    pub fn expose(&self) -> &T {
        &self.0
    }

    /// The secret itself, to be changed in its place: what is moved elsewhere is not wiped.
    pub fn expose_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> std::fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

impl<T: Zeroize> From<T> for Secret<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_shows_in_debug_output() {
        let secret = Secret::new(b"hunter2".to_vec());
        assert_eq!(format!("{secret:?}"), "Secret(redacted)");
        assert_eq!(secret.expose(), b"hunter2");
    }
}
