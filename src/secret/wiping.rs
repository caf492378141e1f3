//! Memory that is wiped before it is given back.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};

/// The system's allocator, which fills what is freed with zeros once [`Wiping::begin`] was called.
///
/// So nothing that was in a buffer stays behind it, whoever had it: what is written and read, what is packed and not sealed yet, what
/// a library has copied, what a buffer that grew has moved away from. What is in use is not touched, the stack neither, nor what a C library
/// takes for itself: the memory that zstd works in keeps parts of the last block of each thread.
#[derive(Debug)]
pub(super) struct Wiping {
    begun: AtomicBool,
}

impl Wiping {
    pub(super) const fn new() -> Wiping {
        Wiping {
            begun: AtomicBool::new(false),
        }
    }

    /// Wipes what is freed from now on.
    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }
}

// SAFETY: every call is passed on to the system's allocator as it came, but for two: `dealloc` first writes to memory that is still the
// caller's to give up, and `realloc` may be made of the others, as the trait's own is.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if self.has_begun() {
            // SAFETY: it was allocated with this layout, and nobody else uses it any more.
            unsafe { memory.write_bytes(0, layout.size()) };
            // Whoever might look at it again keeps the compiler from leaving that out.
            black_box(memory);
        }
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !self.has_begun() {
            // SAFETY: the caller keeps to the same contract.
            return unsafe { System.realloc(memory, layout, size) };
        }
        // SAFETY: the caller answers for the size, which is not zero and does not overflow with this alignment.
        let moved =
            unsafe { System.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !moved.is_null() {
            // SAFETY: both are at least as long, and the new one is nobody else's; the old one was allocated with this layout.
            unsafe {
                moved.copy_from_nonoverlapping(memory, size.min(layout.size()));
                self.dealloc(memory, layout);
            }
        }
        moved
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    /// Small enough that the system's allocator keeps it when it is freed.
    const SIZE: usize = 4000;
    /// What that allocator writes into what is free.
    const ITS_OWN: usize = 64;
    const MARK: u8 = 0xb7;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 16).expect("a layout")
    }

    /// Marked memory.
    fn marked(wiping: &Wiping) -> *mut u8 {
        // SAFETY: the layout is not empty, and the bytes are within it.
        unsafe {
            let memory = wiping.alloc(layout(SIZE));
            memory.write_bytes(MARK, SIZE);
            black_box(memory)
        }
    }

    /// How much of a mark is left when memory is given up by `free`. Another thread may be given it at once, so the most of many tries.
    fn most_left<T>(make: impl Fn() -> T, address: fn(&T) -> *const u8, free: impl Fn(T)) -> usize {
        // As another process would read it, since it is nobody's; and into memory that is not taken from there.
        let process = File::open("/proc/self/mem").expect("procfs");
        let mut left = [0; SIZE - ITS_OWN];
        let tries = (0..200).map(|_| {
            let memory = make();
            // Keeps the heap from ending before it.
            let behind = make();
            let at = address(&memory) as usize + ITS_OWN;
            free(memory);
            let read = process.read_exact_at(&mut left, at as u64);
            read.expect("is mapped");
            free(behind);
            left.iter().filter(|byte| **byte == MARK).count()
        });
        tries.max().expect("some tries")
    }

    #[test]
    fn what_is_freed_is_wiped_from_the_beginning_on() {
        let wiping = Wiping::new();
        let most_left = || {
            // SAFETY: the memory was allocated with that layout.
            let free = |memory| unsafe { wiping.dealloc(memory, layout(SIZE)) };
            most_left(|| marked(&wiping), |memory| *memory, free)
        };
        assert!(most_left() > SIZE / 2, "not begun");
        wiping.begin();
        assert_eq!(most_left(), 0);
    }

    #[test]
    fn what_grows_or_shrinks_has_its_content_and_leaves_none() {
        for size in [2 * SIZE, SIZE / 2] {
            let wiping = Wiping::new();
            wiping.begin();
            let resize = |memory| {
                // SAFETY: the memory was allocated with that layout, and `resized` with the other.
                unsafe {
                    let resized = wiping.realloc(memory, layout(SIZE), size);
                    let content = std::slice::from_raw_parts(resized, size.min(SIZE));
                    assert!(content.iter().all(|byte| *byte == MARK));
                    wiping.dealloc(resized, layout(size));
                }
            };
            let left = most_left(|| marked(&wiping), |memory| *memory, resize);
            assert_eq!(left, 0);
        }
    }

    #[test]
    fn a_guarded_process_leaves_nothing_in_what_any_of_it_has_freed() {
        crate::secret::guard_process();
        let buffer = || black_box(vec![MARK; SIZE]);
        assert_eq!(most_left(buffer, |buffer| buffer.as_ptr(), drop), 0);
    }
}
