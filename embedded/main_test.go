package embedded_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lockfabric/lockfabric/embedded"
)

// ownerEnv makes the test binary a process that owns a store, see
// TestStoreInUseAcrossProcesses.
const ownerEnv = "LOCKFABRIC_TEST_STORE_OWNER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(ownerEnv); dir != "" {
		ownStore(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// ownStore starts a server, prints its URL, and waits to be killed or for the
// end of its input.
func ownStore(dir string) {
	s, err := embedded.Start(context.Background(), embedded.WithStoreDir(dir), embedded.WithListen("127.0.0.1:0"))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(s.ClientURL())
	_, _ = io.Copy(io.Discard, os.Stdin)
	s.Kill()
}

// testTimeout bounds a test that waits for an event that never comes. Elections
// alone take up to nine seconds each.
const testTimeout = 2 * time.Minute

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}
