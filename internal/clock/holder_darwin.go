package clock

import "golang.org/x/sys/unix"

// Holder returns the clock for judging one's own lease: CLOCK_MONOTONIC, which
// on this system, unlike Go's monotonic time, counts while the host is asleep.
func Holder() Clock { return system(unix.CLOCK_MONOTONIC) }
