package clock

import "golang.org/x/sys/unix"

// Holder returns the clock for one's own lease: CLOCK_MONOTONIC_RAW. It counts while the host is asleep,
// unlike Go's monotonic time. CLOCK_MONOTONIC does, too, but on this system it follows adjustments of the wall clock
// and has been seen to step backwards.
func Holder() Clock { return system(unix.CLOCK_MONOTONIC_RAW) }
