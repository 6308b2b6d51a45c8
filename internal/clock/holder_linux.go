package clock

import "golang.org/x/sys/unix"

// Holder returns the clock for one's own lease: CLOCK_BOOTTIME, which counts while the host is suspended.
func Holder() Clock { return system(unix.CLOCK_BOOTTIME) }
