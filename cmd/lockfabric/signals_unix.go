//go:build unix

package main

import (
	"os"
	"os/signal"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// endings are the signals that end a program which doesn't catch them. They end a
// run that waits; while the command runs they are its affair, as are the rest of
// forwarded. Those for faults are among them because Go tells of the ones that
// were sent.
//
// SIGTSTP and SIGCONT are forwarded because a run that is stopped can't renew the
// lock: the command has to stop first.
//
// Not forwarded: SIGKILL and SIGSTOP can't be caught; SIGCHLD and SIGURG are for this
// program; SIGPIPE and SIGXFSZ come of what it writes itself, SIGTTIN and SIGTTOU
// of its use of the terminal; SIGPROF is the runtime's of Go, and so are 32 to 34 on Linux.
var (
	endings = append([]os.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGALRM, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGXCPU, unix.SIGVTALRM,
		unix.SIGILL, unix.SIGTRAP, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSYS,
	}, moreEndings()...)
	forwarded = append(slices.Clip(endings), unix.SIGIO, unix.SIGWINCH, unix.SIGTSTP, unix.SIGCONT)
	// brokenPipe is caught, and dropped: else a warning to a reader that is gone would
	// end this program, and the hold.
	brokenPipe = []os.Signal{unix.SIGPIPE}
)

// inheritIgnored ignores what was ignored when this program was started, as nohup,
// a shell's trap or systemd want it. The command then inherits that. Go's runtime
// undoes it for most signals. SIGCHLD is left out, because nobody could wait for the
// command, and SIGURG, which Go's runtime needs.
func inheritIgnored() {
	for sig := syscall.Signal(1); sig <= lastSignal; sig++ {
		if ignoredAtStart(sig) && sig != unix.SIGCHLD && sig != unix.SIGURG {
			signal.Ignore(sig)
		}
	}
}

func signalNumber(sig os.Signal) int {
	if s, ok := sig.(syscall.Signal); ok {
		return int(s)
	}
	return 0
}
