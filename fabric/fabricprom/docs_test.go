package fabricprom_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockfabric/lockfabric/fabric/fabricprom"
)

// Every metric is in the table of docs/observability.md, and nothing else is.
func TestMetricsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	descs := make(chan *prometheus.Desc, 100)
	fabricprom.New().Describe(descs)
	close(descs)
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	known := map[string]bool{}
	for d := range descs {
		found := name.FindStringSubmatch(d.String())
		if found == nil {
			t.Fatalf("no name in %s", d)
		}
		known[found[1]] = true
		if !strings.Contains(string(doc), "\n| `"+found[1]+"` |") {
			t.Errorf("%s is not in the table", found[1])
		}
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `(lockfabric_[a-z_]+)` \\|").FindAllStringSubmatch(string(doc), -1) {
		if !known[row[1]] {
			t.Errorf("the table has %s, which is no metric", row[1])
		}
	}
}
