//go:build unix

package primitives_test

import "syscall"

// stop has the process do nothing, as a long pause of its machine does, until resume. It reports whether this
// system can.
func (p *process) stop() bool {
	return p.cmd.Process.Signal(syscall.SIGSTOP) == nil
}

func (p *process) resume() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }
