package archtest

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// source is one Go file, whatever its build constraints say.
type source struct {
	path    string // from the module's root, with slashes
	pkg     string // the directory of path
	name    string // the package clause
	lines   int
	doc     string // package comment
	imports []string
	inits   int // functions called init
}

func (s source) isTest() bool { return strings.HasSuffix(s.path, "_test.go") }

// readTree parses every Go file of a module. Hidden directories, testdata and
// modules nested in it are not part of it.
func readTree(tree fs.FS) ([]source, error) {
	var all []source
	err := fs.WalkDir(tree, ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if p != "." && skipped(tree, p) {
				return fs.SkipDir
			}
			return nil
		case path.Ext(p) != ".go":
			return nil
		}
		s, err := readSource(tree, p)
		if err != nil {
			return err
		}
		all = append(all, s)
		return nil
	})
	return all, err
}

func skipped(tree fs.FS, dir string) bool {
	base := path.Base(dir)
	if base == "testdata" || base == "vendor" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
		return true
	}
	_, err := fs.Stat(tree, path.Join(dir, "go.mod"))
	return err == nil
}

func readSource(tree fs.FS, p string) (source, error) {
	text, err := fs.ReadFile(tree, p)
	if err != nil {
		return source{}, err
	}
	file, err := parser.ParseFile(token.NewFileSet(), p, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return source{}, err
	}
	s := source{
		path:  p,
		pkg:   path.Dir(p),
		name:  file.Name.Name,
		lines: bytes.Count(text, []byte("\n")),
		doc:   file.Doc.Text(),
	}
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return source{}, err
		}
		s.imports = append(s.imports, imported)
	}
	for _, decl := range file.Decls {
		if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			s.inits++
		}
	}
	return s, nil
}
