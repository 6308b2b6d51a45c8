package main

import (
	"os"
	"strings"
	"syscall"
	"testing"
)

// As the first process of a container run reaps the orphans that it adopts, and its
// exit code is that of its command all the same.
func TestFirstProcessReapsOrphans(t *testing.T) {
	t.Parallel()
	// Ten orphans end while the command runs. It mounts a /proc of its own to count zombies.
	script := `mount --make-rprivate /
mount -t proc proc /proc
for i in 1 2 3 4 5 6 7 8 9 10; do (sh -c 'exit 3' & ) ; done
for i in $(seq 100); do
  left=$(cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ')
  [ "$left" = 0 ] && break
  sleep 0.1
done
echo "zombies: $left"
exit 42`
	cmd := lockfabric(t, "run", "k", "--", "sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	if os.Getuid() != 0 { // a user of its own namespace may do it, too
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	code, stdout, stderr := run(t, cmd)
	if code != 42 || strings.TrimSpace(stdout) != "zombies: 0" {
		t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
	}
}
