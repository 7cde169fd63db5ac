"""What the readers of ONNX files share: files and their sizes, control flow laid flat, operators and their costs."""
