//! The one place where an error becomes an errno.

use fuser::Errno;

use crate::error::{Error, ErrorKind};

/// What the kernel is told about a failed request.
///
/// Never `ENOSYS`: the kernel takes that to mean that the operation does not exist, and from then on answers every fsync with
/// success by itself.
pub(super) fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::Usage => Errno::EINVAL,
        ErrorKind::Fenced | ErrorKind::ReadOnly | ErrorKind::Held => Errno::EROFS,
        ErrorKind::Full => Errno::ENOSPC,
        ErrorKind::Unsupported => Errno::EOPNOTSUPP,
        ErrorKind::Busy => Errno::EBUSY,
        ErrorKind::Superseded => Errno::ESTALE,
        // The store's own refusals (`Denied`, `NotFound`, `Exists`) would read as if the image file were meant.
        ErrorKind::Denied
        | ErrorKind::NotFound
        | ErrorKind::Exists
        | ErrorKind::Unreachable
        | ErrorKind::Damaged
        | ErrorKind::RolledBack
        | ErrorKind::NoKey
        | ErrorKind::System => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_reach_the_kernel_as_what_a_disk_would_say() {
        let cases = [
            (ErrorKind::Usage, Errno::EINVAL),
            (ErrorKind::Fenced, Errno::EROFS),
            (ErrorKind::ReadOnly, Errno::EROFS),
            (ErrorKind::Full, Errno::ENOSPC),
            (ErrorKind::Damaged, Errno::EIO),
            (ErrorKind::Superseded, Errno::ESTALE),
            (ErrorKind::Unreachable, Errno::EIO),
            (ErrorKind::Denied, Errno::EIO),
            (ErrorKind::NotFound, Errno::EIO),
            (ErrorKind::Unsupported, Errno::EOPNOTSUPP),
        ];
        for (kind, expected) in cases {
            assert_eq!(errno(&Error::new(kind, "x")), expected, "{kind:?}");
        }
    }
}
