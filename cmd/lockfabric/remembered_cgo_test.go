//go:build unix && cgo

package main

import "syscall"

// remembered reports whether this build knows of a signal that it was ignored when
// the program was started.
func remembered(syscall.Signal) bool { return true }
