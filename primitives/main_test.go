package primitives_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/lockfabric/lockfabric/internal/test/sites"
)

// roleVar has a test's program do what a process of its own does, see roles.
const roleVar = "LOCKFABRIC_TEST_ROLE"

// TestMain stops the servers that the tests share, and then looks for goroutines that nobody stopped.
func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		os.Exit(play(role))
	}
	sites.RunMoreAtOnce()
	code := m.Run()
	if err := stopSites(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	if code == 0 {
		if err := sites.FindLeaks(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
