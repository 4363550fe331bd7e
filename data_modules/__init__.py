"""Data modules: data sets on disk or made by code, as training clips and as whole videos."""
