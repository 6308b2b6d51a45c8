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

// parentOf can't tell here.
func parentOf(int) int { return 0 }
