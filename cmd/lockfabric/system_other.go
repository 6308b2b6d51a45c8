//go:build unix && !linux

package main

import (
	"os"
	"syscall"
)

const lastSignal = syscall.Signal(31)

func moreEndings() []os.Signal { return nil }

// dieWithParent does nothing: this system has no such service.
func dieWithParent(*syscall.SysProcAttr) {}

// adoptOrphans does nothing: this system has no such service.
func adoptOrphans() {}

// parentOf is unknown on this system.
func parentOf(int) int { return 0 }

// guard is guardFile, because this system has no abstract sockets.
func guard(dir string) (release func(), err error) { return guardFile(dir, "/tmp") }

// watchProcess returns a channel that is closed when a process has ended, and a function that asks it to end.
func watchProcess(pid int) (gone <-chan struct{}, terminate func(), err error) {
	return pollProcess(pid)
}
