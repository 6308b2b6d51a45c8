//go:build unix && !cgo

package main

import (
	"os/signal"
	"syscall"
)

// ignoredAtStart reports whether this program was started with a signal ignored.
// Go's runtime remembers that of SIGHUP and SIGINT only.
func ignoredAtStart(sig syscall.Signal) bool { return signal.Ignored(sig) }
