//go:build unix && cgo

package main

/*
#include <signal.h>

enum { most = 65 };
static char ignored[most];

// note runs before Go's runtime, which installs handlers of its own and forgets what was there.
__attribute__((constructor)) static void note(void) {
	struct sigaction a;
	for (int sig = 1; sig < most; sig++) {
		ignored[sig] = sigaction(sig, NULL, &a) == 0 && a.sa_handler == SIG_IGN;
	}
}

static int was_ignored(int sig) { return sig > 0 && sig < most && ignored[sig]; }
*/
import "C"

import "syscall"

// ignoredAtStart reports whether this program was started with a signal ignored.
func ignoredAtStart(sig syscall.Signal) bool { return C.was_ignored(C.int(sig)) != 0 }
