//go:build unix && !linux

package main

import "syscall"

// dieWithParent does nothing: this system has no such service.
func dieWithParent(*syscall.SysProcAttr) {}

// parentOf can't tell here.
func parentOf(int) int { return 0 }
