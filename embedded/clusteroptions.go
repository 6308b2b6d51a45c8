package embedded

import (
	"fmt"
	"log/slog"
	"time"
)

const (
	defaultNodes = 3

	// maxNodes keeps a slip of the pen from starting hundreds of servers.
	maxNodes = 9
)

// clusterSyncDefault is the server's own default interval.
const clusterSyncDefault = SyncMode(2 * time.Minute)

// ClusterOption configures StartCluster.
type ClusterOption func(*clusterConfig) error

type clusterConfig struct {
	nodes    int
	storeDir string
	sync     SyncMode
	name     string
	logger   *slog.Logger
}

// ClusterStoreDir keeps each node's store in a directory of its own below dir.
// The default is temporary directories that Cluster.Shutdown removes.
func ClusterStoreDir(dir string) ClusterOption {
	return func(c *clusterConfig) error {
		if dir == "" {
			return fmt.Errorf("%w: ClusterStoreDir: the directory is empty; leave the option out for a temporary one", ErrInvalidOption)
		}
		c.storeDir = dir
		return nil
	}
}

// ClusterSync says when writes reach the disk of each node. Other than for
// Start, the default is SyncInterval(2 * time.Minute), the NATS server's own:
// the cluster runs on one machine, so it is for tests and trials, and no
// replica would survive a power failure that the others don't.
func ClusterSync(mode SyncMode) ClusterOption {
	return func(c *clusterConfig) error {
		c.sync = mode
		return mode.validate("ClusterSync")
	}
}

// ClusterName names the cluster; nodes are called <name>-0, <name>-1 and so
// on. The default is "lockfabric".
func ClusterName(name string) ClusterOption {
	return func(c *clusterConfig) error {
		c.name = name
		return WithCluster(name, "127.0.0.1:0")(&config{})
	}
}

// ClusterLogger sends the nodes' logs to l, each with the attribute "node".
// Without it, or with nil, the nodes are silent.
func ClusterLogger(l *slog.Logger) ClusterOption {
	return func(c *clusterConfig) error {
		c.logger = l
		return nil
	}
}

func newClusterConfig(n int, opts []ClusterOption) (*clusterConfig, error) {
	if n == 0 {
		n = defaultNodes
	}
	if n < 2 || n > maxNodes {
		return nil, fmt.Errorf("%w: StartCluster: %d nodes; give 2 to %d, or use Start for a single server", ErrInvalidOption, n, maxNodes)
	}
	c := &clusterConfig{nodes: n, sync: clusterSyncDefault, name: "lockfabric"}
	for i, o := range opts {
		if o == nil {
			return nil, fmt.Errorf("%w: cluster option %d is nil; leave it out", ErrInvalidOption, i)
		}
		if err := o(c); err != nil {
			return nil, err
		}
	}
	return c, nil
}
