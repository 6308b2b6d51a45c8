package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// launch becomes a command that is started with signals ignored and blocked: two
// lists of numbers with commas, then the command.
func launch(args []string) int {
	runtime.LockOSThread()
	for _, sig := range numbers(args[0]) {
		signal.Ignore(sig)
	}
	var set unix.Sigset_t
	for _, sig := range numbers(args[1]) {
		set.Val[(sig-1)/64] |= 1 << ((sig - 1) % 64)
	}
	err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil)
	if err == nil {
		err = syscall.Exec(args[2], args[2:], os.Environ())
	}
	fmt.Fprintln(os.Stderr, err)
	return 99
}

func numbers(list string) (sigs []syscall.Signal) {
	for text := range strings.SplitSeq(list, ",") {
		if n, err := strconv.Atoi(text); err == nil {
			sigs = append(sigs, syscall.Signal(n))
		}
	}
	return sigs
}
