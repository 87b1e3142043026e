//! `struct ifreq`: how the older `ioctl`s name an interface.

use std::io;

use crate::link::MAX_NAME;

/// A request about the interface of that name, all else zero.
///
/// # Errors
/// `InvalidInput` if the name is empty, longer than [`MAX_NAME`] bytes, or has a zero byte.
pub(super) fn named(name: &str) -> io::Result<libc::ifreq> {
    if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("an interface name has 1 to {MAX_NAME} bytes, {name:?} has {}", name.len()),
        ));
    }
    // SAFETY: integers, and a union of integers and one pointer, for all of which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_do_not_fit_are_refused() {
        assert!(named("").is_err());
        assert!(named("fd-0123456789abc").is_err());
        assert!(named("a\0b").is_err());
        assert_eq!(named("fd-0123456789ab").unwrap().ifr_name[15], 0, "still terminated");
    }
}
