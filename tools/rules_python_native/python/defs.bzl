"""The Python rules of a Bazel that has them built in, under the label where rules_python has them."""

py_binary = native.py_binary
py_library = native.py_library
py_test = native.py_test
