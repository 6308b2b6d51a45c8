package fabric_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/lockfabric/lockfabric/internal/test/sites"
)

// TestMain stops the servers that the tests share, and then looks for
// goroutines that nobody stopped.
func TestMain(m *testing.M) {
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
