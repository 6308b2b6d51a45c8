package chaos_test

import (
	"context"
	"fmt"
	"os"

	"github.com/lockfabric/lockfabric/fabric"
)

// coalescerEnv makes the test binary a process that serves as a coalescer. Its value is "<url> <label>".
const coalescerEnv = "LOCKFABRIC_TEST_COALESCER"

// coalescerProcess serves until the end of its input, and then closes its manager.
func coalescerProcess() int {
	var url, label string
	if _, err := fmt.Sscan(os.Getenv(coalescerEnv), &url, &label); err != nil {
		return 2
	}
	m, err := fabric.Connect(context.Background(), url, patiently, fabric.WithCoalescer(), fabric.WithLabel(label))
	if err != nil {
		return 1
	}
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 1))
	if m.Close() != nil {
		return 1
	}
	return 0
}
