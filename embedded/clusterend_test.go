package embedded_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/lockfabric/lockfabric/embedded"
)

// Where nothing has to be waited for, an ended context is no reason to leave links
// and stores behind; and what is shut down stays so.
func TestClusterShutdownOfStoppedNodes(t *testing.T) {
	c := startCluster(t, 2)
	dir := filepath.Dir(c.Node(0).StoreDir())
	for i := range c.Size() {
		if err := c.StopNode(testContext(t), i); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Shutdown(canceled(t)); err != nil {
		t.Error(err)
	}
	if exists(dir) {
		t.Errorf("%s is left", dir)
	}
	if err := c.RestartNode(testContext(t), 0); !errors.Is(err, embedded.ErrStopped) || c.Running(0) || exists(dir) {
		t.Errorf("restart after Shutdown: %v, running %v", err, c.Running(0))
	}
}
