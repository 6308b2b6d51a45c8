//go:build unix && !cgo

package main

import "syscall"

func remembered(sig syscall.Signal) bool { return sig == syscall.SIGHUP || sig == syscall.SIGINT }
